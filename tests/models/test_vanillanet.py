from functools import partial

import pytest
import torch
from helpers.networks import ARCHS, call_and_count, randomize, relative_error
from helpers.pairs import zip_equal
from helpers.programs import ROOT
from helpers.versions import torch_has
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvanilla import (
    UsageError,
    VanillaNet,
    convert_official_state_dict,
    set_deep_training_lambda,
    switch_to_deploy,
)

FIXTURES = ['vanillanet_6_w8_n3', 'vanillanet_13_w8_n4']


@pytest.fixture(params=FIXTURES)
def fixture(request):
    return torch.load(ROOT / f'tests/data/{request.param}.pt', weights_only=True)


def build(fixture, key='state_dict', **kwargs):
    backbone = VanillaNet(
        dict(channels=fixture['dims'], strides=fixture['strides']),
        act_num=fixture['act_num'],
        **kwargs,
    )
    weights = convert_official_state_dict(fixture[key])
    prefix = 'backbone.'
    backbone.load_state_dict(
        {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}, strict=True
    )
    return backbone.eval()


def block_features(backbone, x):
    features = {}
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: features.__setitem__(str(i), out))
    with torch.no_grad():
        backbone(x)
    return features


def test_block_features_equal_the_authors(fixture):
    features = block_features(build(fixture), fixture['input'])
    for block, expected in fixture['block_features'].items():
        assert relative_error(features[block], expected) < 1e-5


def test_authors_deploy_weights_load(fixture):
    backbone = build(fixture, 'deploy_state_dict', deploy=True)
    features = block_features(backbone, fixture['input'])
    for block, expected in fixture['block_features'].items():
        assert relative_error(features[block], expected) < 1e-5


def test_gradients_in_training(fixture):
    backbone = build(fixture).train()
    set_deep_training_lambda(backbone, 0.3)
    backbone(fixture['train_input'].float())[-1].square().mean().backward()
    for name, param in backbone.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), name
        if not name.endswith('.bias'):
            assert param.grad.abs().max() > 0, name


def narrow(arch, **kwargs):
    kwargs = {'widen_factor': 1 / 64, 'out_indices': (3,), **kwargs}
    return randomize(VanillaNet(arch, **kwargs))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('act_num', range(5))
@pytest.mark.parametrize('arch', ARCHS)
def test_fused_equals_unfused(arch, act_num, dtype):
    indices = (3,) if arch.endswith('ada') else (0, 1, 2, 3)
    backbone = narrow(arch, act_num=act_num, out_indices=indices).to(dtype)
    x = torch.randn(2, 3, 45, 67, dtype=dtype)
    fused = switch_to_deploy(backbone.train())  # still computes the eval-mode function
    with torch.no_grad():
        for got, expected in zip_equal(fused(x), backbone.eval()(x)):
            assert (
                relative_error(got, expected) < {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
            )


@pytest.mark.parametrize('shortcut', [None, 'before_act', 'after_act'])
def test_shortcuts_of_table_3(shortcut):
    """Shortcuts average over the stride and pad new channels with zeros; the stem has none."""
    backbone = narrow('7', shortcut=shortcut, out_indices=(0, 1, 2, 3)).double().eval()
    images = torch.randn(2, 3, 67, 99, dtype=torch.float64)  # maps of odd sizes
    expected, x = [], backbone.stem.act(backbone.stem.conv(images))
    for block, stride, stage in zip_equal(backbone.blocks, [1, 2, 2, 2, 1], [0, 1, 2, 3, 3]):
        around = nn.functional.avg_pool2d(x, stride)
        x = nn.functional.max_pool2d(block.conv(x), stride)
        around = torch.cat([around, x.new_zeros(2, x.shape[1] - around.shape[1], *x.shape[2:])], 1)
        if shortcut == 'before_act':
            x = block.act(x + around)
        else:
            x = block.act(x) + (around if shortcut else 0)
        expected[stage:] = [x]
    for network in (backbone, switch_to_deploy(backbone)):
        for got, feature in zip_equal(network(images), expected):
            torch.testing.assert_close(got, feature, rtol=1e-10, atol=1e-10)
    backbone.train()(images)[-1].square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_shortcuts_with_adaptive_pooling():
    backbone = narrow('13-x1.5-ada', shortcut='after_act')
    assert backbone(torch.randn(1, 3, 224, 224))[0].shape[2:] == (10, 10)


@pytest.mark.parametrize('arch', ARCHS)
def test_fused_form(arch):
    backbone = narrow(arch)
    fused = switch_to_deploy(backbone)
    assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
    for conv in (m for m in fused.modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.stride() == torch.empty(conv.weight.shape).stride()
    again = switch_to_deploy(fused)
    for name, value in fused.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    built = VanillaNet(arch, widen_factor=1 / 64, deploy=True)
    built.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(built.eval()(x)[-1], fused(x)[-1])


def test_copy_or_in_place():
    backbone = narrow('5')
    assert switch_to_deploy(backbone) is not backbone
    assert any(isinstance(m, _BatchNorm) for m in backbone.modules())
    assert switch_to_deploy(backbone, inplace=True) is backbone
    assert not any(isinstance(m, _BatchNorm) for m in backbone.modules())


def test_method_switch_to_deploy():
    backbone = narrow('6').eval()
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)[0]
    backbone.switch_to_deploy()
    assert relative_error(backbone(x)[0], expected) < 1e-5
    other = narrow('6')
    other.blocks[-1].conv.lambda_ = 0.5
    with pytest.raises(UsageError, match='λ = 0.5'):
        other.switch_to_deploy()
    assert other.stem.conv.is_deep


# Channels, strides and depth of the released weights (the paper's Tables 4 and 6).
@pytest.mark.parametrize('arch', ARCHS)
def test_published_features(arch):
    scale = 1.5 if 'x1.5' in arch else 1
    stages = (3,) if arch.endswith('ada') else (0, 1, 2, 3)
    backbone = VanillaNet(arch, widen_factor=1 / 64, out_indices=stages)
    assert backbone.out_channels == tuple(int(8 * scale * 2**s) for s in stages)
    assert len(backbone.blocks) + 2 == int(arch.split('-')[0])  # stem, blocks, classifier
    if not arch.endswith('ada'):
        assert backbone.out_strides == (4, 8, 16, 32)
        shapes = [x.shape[1:] for x in backbone(torch.rand(1, 3, 64, 96))]
        expected = zip(backbone.out_channels, backbone.out_strides)
        assert shapes == [(c, 64 // s, 96 // s) for c, s in expected]


def test_adaptive_sizes():
    sizes = []
    backbone = narrow('13-x1.5-ada').eval()
    for block in backbone.blocks:
        block.register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    backbone(torch.rand(1, 3, 224, 224))
    assert sorted(set(sizes), reverse=True) == [75, 38, 19, 10]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='14'), "'14' is unknown: choose one of '5', '6'"),
        (dict(arch=dict(channels=[8, 8], strides=[1, 2])), '2 channels and 2 strides'),
        (dict(arch=dict(channels=[8, 8])), 'channels and strides'),
        (dict(arch=dict(channels=[8, 8], strides=[2], depth=3)), 'depth'),
        (
            dict(arch=dict(channels=[8, 8], strides=[2], adaptive_pool_sizes=[1, 2])),
            '2 adaptive_pool_sizes',
        ),
        (dict(out_indices=(4,)), r'out_indices=\(4,\) is out of range.*0 to 3'),
        (dict(out_indices=(-1,)), 'out of range'),
        (dict(out_indices=()), 'out of range'),
        (dict(out_indices=(2, 1)), 'ascend'),
        (dict(arch='13-x1.5-ada', out_indices=(1, 2, 3)), '224x224'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), "'GN'"),
        (dict(shortcut='both'), "'both' is unknown: choose one of before_act, after_act, or None"),
        (
            dict(shortcut='after_act', out_indices=1, arch=dict(channels=[512, 256], strides=[2])),
            'from 8 to 4 channels',
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(UsageError, match=message):
        VanillaNet(**{'arch': '5', 'widen_factor': 1 / 64, **kwargs})


def test_norm_eps():
    assert {m.eps for m in narrow('5').modules() if isinstance(m, _BatchNorm)} == {1e-6}
    backbone = narrow('5', norm_cfg=dict(type='SyncBN', eps=1e-3, requires_grad=False))
    norms = [m for m in backbone.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 3 * 4 and {m.eps for m in norms} == {1e-3}
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def train_a_step(backbone, x):
    params = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    loss = sum(out.square().mean() for out in backbone.train()(x))
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(frozen_stages):
    backbone = narrow('8', frozen_stages=frozen_stages, out_indices=(0, 1, 2, 3))
    set_deep_training_lambda(backbone, 0.3)  # at 1, the first norm's bias would have no gradient
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    if frozen_stages < 4:
        train_a_step(backbone, torch.randn(4, 3, 64, 64))
    for name, value in backbone.state_dict().items():
        if name.endswith(('_extra_state', 'num_batches_tracked')):
            continue
        layer = 0 if name.startswith('stem') else int(name.split('.')[1]) + 1
        frozen = backbone.stage_of_layer[layer] < frozen_stages or (
            layer == 0 and frozen_stages == 0
        )
        # The gradient of a shift in front of a norm is only a rounding error.
        is_shift = name.endswith('.bias') and ('.conv.conv' in name or '.act.norm' in name)
        if frozen:
            assert torch.equal(value, before[name]), name
        elif not is_shift:
            assert not torch.equal(value, before[name]), name


def test_norm_eval():
    backbone = narrow('6', norm_eval=True, out_indices=(0, 1, 2, 3))
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    train_a_step(backbone, torch.randn(4, 3, 64, 64))
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_with_cp(norm_eval, frozen_stages):
    results = []
    for with_cp in (False, True):
        backbone = narrow(
            '8',
            with_cp=with_cp,
            norm_eval=norm_eval,
            frozen_stages=frozen_stages,
            out_indices=(0, 1, 2, 3),
        )
        set_deep_training_lambda(backbone, 0.3)
        x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        loss = sum(out.square().mean() for out in backbone.train()(x))
        loss.backward()
        grads = {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}
        results.append((loss, grads, dict(backbone.named_buffers())))
    (loss, grads, buffers), (loss_cp, grads_cp, buffers_cp) = results
    assert torch.equal(loss, loss_cp)
    for name, value in {**grads, **buffers}.items():
        assert torch.equal(value, {**grads_cp, **buffers_cp}[name]), name


def test_with_cp_keeps_less(tmp_path):
    kept = {}
    for with_cp in (True, False):
        backbone = narrow('13', with_cp=with_cp).train()
        run = partial(backbone, torch.randn(2, 3, 64, 64))
        _, kept[with_cp] = call_and_count(run, tmp_path)
    # Before torch 2.1, parts that are computed again keep the inputs of parts inside them.
    assert kept[True] < (0.6 if torch_has('2.1') else 0.9) * kept[False]


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
def test_mixed_precision(value):
    backbone = narrow('6').train()
    set_deep_training_lambda(backbone, value)
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)[0]
        with torch.autocast('cpu', torch.bfloat16):
            got = backbone(x)[0].float()
    assert (got - expected).norm() < 0.08 * expected.norm()


def test_bfloat16_training():
    """In ten iterations with λ from 0 to 1, the losses are within 2% of those of float32."""
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    curves = []
    for enabled in (False, True):
        backbone = narrow('6').train()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.5)
        curves.append([])
        for step in range(10):
            set_deep_training_lambda(backbone, step / 9)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                loss = (backbone(x)[0].float().mean((2, 3)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[-1].append(loss.item())
    expected, got = curves
    assert expected[-1] < 0.7 * expected[0]
    assert got == pytest.approx(expected, rel=0.02)


def test_get_layer_depth():
    backbone = narrow('13')
    depth = {
        n: backbone.get_layer_depth('backbone.' + n, 'backbone.') for n in backbone.state_dict()
    }
    assert depth['stem.conv.conv1.weight'] == (0, 13)
    assert depth['blocks.0.conv.conv1.weight'] == (1, 13)
    assert depth['blocks.10.act.norm.bias'] == (11, 13)
    assert backbone.get_layer_depth('head.conv.conv1.weight', 'backbone.') == (12, 13)


def test_default_initialization():
    torch.manual_seed(0)
    backbone = VanillaNet('5', widen_factor=1 / 8)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert module.bias is None or not module.bias.any()


def test_a_subclass_may_have_architectures_of_its_own():
    class Named(VanillaNet):
        arch_settings = dict(tiny=dict(channels=[4, 8], strides=[2]))

    assert Named('tiny', out_indices=(0, 1)).out_channels == (4, 8)
    with pytest.raises(UsageError, match="choose one of 'tiny'"):
        Named('13')
