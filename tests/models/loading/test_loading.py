"""Weights in every form load into networks in every form, whichever function loads them."""

import copy

import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.versions import needs_torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models import ImageClassifier, ResNet
from torch import nn
from torch.nn.utils import prune

from mmvanilla import (
    UsageError,
    VanillaNet,
    add_deep_training,
    add_series_activation,
    convert_official_state_dict,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models import DeepConv, SeriesActivation
from mmvanilla.models.folding.foldable import named_foldables
from mmvanilla.models.folding.network import check_fused
from mmvanilla.models.loading.weights import load_weights

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
NARROW = dict(arch='6', widen_factor=1 / 64)
FORMS = {
    'deep': lambda network: network,
    'merged': merge_deep_convs,
    'deploy': switch_to_deploy,
}


def vanillanet(**kwargs):
    return lambda **form: VanillaNet(**NARROW, out_indices=(0, 1, 2, 3), **kwargs, **form)


def classifier(**form):
    return ImageClassifier(
        backbone=dict(type='mmvanilla.VanillaNet', **NARROW, **form),
        head=dict(type='mmvanilla.VanillaNetClsHead', num_classes=5, in_channels=64, **form),
    )


def resnet(deep, series):
    """The network is built in deep form and then brought to ``form``, as by with_techniques."""

    def build(**form):
        network = ResNet(
            18, stem_channels=8, base_channels=8, norm_eval=False, out_indices=(0, 1, 2, 3)
        )
        if deep:
            add_deep_training(network, inplace=True)
        if series:
            add_series_activation(network, 1, input_shape=(3, 64, 64), inplace=True)
        return FORMS[next(iter(form), 'deep')](network)

    return build


KINDS = {
    'VanillaNet, n = 1': vanillanet(act_num=1),
    'VanillaNet, n = 0': vanillanet(act_num=0),
    'norms without affine': vanillanet(act_num=1, norm_cfg=dict(type='BN', affine=False)),
    'shortcuts': vanillanet(act_num=1, shortcut='before_act'),
    'classifier': classifier,
    'ResNet-18, series activations': resnet(False, True),
    'ResNet-18, deep convolutions': resnet(True, False),
    'ResNet-18, both': resnet(True, True),
}


def build(kind, form='deep', seed=0):
    network = KINDS[kind](**({} if form == 'deep' else {form: True}))
    randomize(network, seed).eval()  # not returned: eval() of mmpretrain's ResNet returns None
    return network


def torch_load(network, weights):
    network.load_state_dict(weights)


def torch_load_loosely(network, weights):
    network.load_state_dict(weights, strict=False)


LOADERS = [torch_load, torch_load_loosely, load_state_dict]


@torch.no_grad()
def outputs(network):
    network.eval()
    found = network(IMAGES)
    return torch.cat([x.flatten() for x in (found if isinstance(found, tuple) else (found,))])


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('weights_form', FORMS)
@pytest.mark.parametrize('kind', KINDS)
def test_the_same_function(kind, weights_form, form, load):
    source = FORMS[weights_form](build(kind))
    network = build(kind, form, seed=1)
    expected = outputs(source)
    assert relative_error(outputs(network), expected) > 0.1
    load(network, source.state_dict())
    assert relative_error(outputs(network), expected) < 1e-5


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('form', FORMS)
def test_mixed_layer_by_layer(form, load):
    """Layers are in different forms, as after a tool that fuses only the backbone."""
    source = build('classifier')
    weights = {}
    for i, (prefix, _) in enumerate(named_foldables(source)):
        part = FORMS[list(FORMS)[i % 3]](source).state_dict()
        weights.update({k: v for k, v in part.items() if k.startswith(prefix)})
    network = build('classifier', form, seed=1)
    load(network, weights)
    assert relative_error(outputs(network), outputs(source)) < 1e-5


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('weights_form', FORMS)
@pytest.mark.parametrize('prefix', ['_orig_mod.', 'module.', 'module._orig_mod.'])
@pytest.mark.parametrize('kind', ['VanillaNet, n = 1', 'classifier', 'ResNet-18, both'])
def test_names_of_wrappers(kind, prefix, weights_form, form):
    source = FORMS[weights_form](build(kind))
    network = build(kind, form, seed=1)
    network.load_state_dict({prefix + k: v for k, v in source.state_dict().items()})
    assert relative_error(outputs(network), outputs(source)) < 1e-5


@pytest.mark.parametrize('load', LOADERS)
def test_a_compiled_backbone(load):
    source = build('classifier')
    weights = {
        k.replace('backbone.', 'backbone._orig_mod.'): v for k, v in source.state_dict().items()
    }
    network = build('classifier', 'deploy', seed=1)
    load(network, weights)
    assert relative_error(outputs(network), outputs(source)) < 1e-5


def test_networks_that_have_such_names():
    network = add_deep_training(nn.ModuleDict(dict(module=nn.Conv2d(3, 4, 1))))
    weights = {k: v + 1 for k, v in network.state_dict().items() if 'extra' not in k}
    network.load_state_dict(weights, strict=False)
    assert torch.equal(network.module.conv1.weight, weights['module.conv1.weight'])


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('key', ['state_dict', 'deploy_state_dict'])
def test_names_of_the_authors(key, form, load, pytestconfig):
    path = pytestconfig.rootpath / 'tests/data/vanillanet_6_w8_n3.pt'
    weights = torch.load(path, weights_only=True)[key]
    source = VanillaNet(**NARROW, out_indices=(0, 1, 2, 3))
    source.load_state_dict(
        {
            k[len('backbone.') :]: v
            for k, v in convert_official_state_dict(weights).items()
            if k.startswith('backbone.')
        }
    )
    kwargs = {} if form == 'deep' else {form: True}
    network = randomize(VanillaNet(**NARROW, out_indices=(0, 1, 2, 3), **kwargs))
    load(network, {k: v for k, v in weights.items() if not k.startswith('cls')})
    assert relative_error(outputs(network), outputs(source)) < 1e-5


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('form', ['merged', 'deploy'])
@pytest.mark.parametrize(
    'kind', [kind for kind in KINDS if kind != 'ResNet-18, series activations']
)
def test_below_one_only_in_deep_form(kind, form, load):
    source = build(kind)
    set_deep_training_lambda(source, 0.4)
    with pytest.raises(UsageError, match='its λ is 0.4, and a pair merges only at 1'):
        load(build(kind, form, seed=1), source.state_dict())
    deep = build(kind, seed=1)
    load(deep, source.state_dict())
    assert torch.equal(outputs(deep), outputs(source))


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('weights_form', FORMS)
def test_every_key_of_a_layer_counts(weights_form, form, load):
    """A layer is refused if any of its keys is missing, except counters and λ."""
    weights = FORMS[weights_form](build('VanillaNet, n = 1')).state_dict()
    network = build('VanillaNet, n = 1', form, seed=1)
    for key in [k for k in weights if k.startswith('blocks.1.')]:
        given = {k: v for k, v in weights.items() if k != key}
        if key.endswith(('num_batches_tracked', '_extra_state')):
            load(copy.deepcopy(network), given)
            continue
        with pytest.raises(UsageError, match=r'checkpoint does not fit blocks\.1\.\w+: '):
            load(copy.deepcopy(network), given)


@pytest.mark.parametrize('state', [2.0, float('nan'), 'x', [0.0, 1.0]])
def test_a_lambda_that_is_none(state):
    weights = build('VanillaNet, n = 1').state_dict()
    state = state if isinstance(state, str) else torch.tensor(state)
    weights['stem.conv.act._extra_state'] = state
    with pytest.raises(UsageError, match=r'fit stem\.conv: its λ is not a number from 0 to 1'):
        build('VanillaNet, n = 1').load_state_dict(weights)


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='BN', affine=False)])
def test_norms_of_another_kind(norm_cfg):
    """Otherwise their scales would be lost, or the network would keep its own."""
    other = dict(norm_cfg, affine=not norm_cfg.get('affine', True))
    weights = VanillaNet(**NARROW, norm_cfg=norm_cfg).state_dict()
    for form in ({}, dict(merged=True), dict(deploy=True)):
        with pytest.raises(UsageError, match=r'stem\.conv: (missing|unexpected): norm'):
            load_state_dict(VanillaNet(**NARROW, norm_cfg=other, **form), weights)


@pytest.mark.parametrize('weights_form', FORMS)
def test_other_channels_leave_the_layer(weights_form):
    """In fine-tuning to other classes, mmengine leaves the layer alone; torch raises an error."""
    source = FORMS[weights_form](build('classifier'))
    network = build('classifier', seed=1)
    network.head.conv = DeepConv(64, 7, mid_channels=7, final_norm=False)
    before = copy.deepcopy(network.head.state_dict())
    load_state_dict(network, source.state_dict())
    assert network.head.conv.is_deep
    for name, value in network.head.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(RuntimeError, match=r'size mismatch for head\.conv\.conv'):
        network.load_state_dict(source.state_dict(), strict=False)


def test_folded_by_mmcv():
    """mmcv folds the norms and puts Identity in their place."""
    network = build('VanillaNet, n = 1')
    expected = outputs(network)
    fused = fuse_conv_bn(copy.deepcopy(network))
    assert isinstance(fused.stem.conv.norm1, nn.Identity)
    for form in ('merged', 'deploy'):
        assert relative_error(outputs(FORMS[form](fused)), expected) < 1e-5
    target = build('VanillaNet, n = 1', 'deploy', seed=1)
    target.load_state_dict(FORMS['deploy'](fused).state_dict())
    assert relative_error(outputs(target), expected) < 1e-5


@pytest.mark.parametrize('kind', ['VanillaNet, n = 1', 'ResNet-18, both', 'classifier'])
def test_fused_weights_do_not_train(kind):
    network = build(kind)
    network.load_state_dict(switch_to_deploy(build(kind, seed=1)).state_dict())
    network(IMAGES)
    network.train()
    for each in (network, copy.deepcopy(network)):
        with pytest.raises(UsageError, match='fused weights, which are only for inference'):
            each(IMAGES)
    with torch.no_grad():
        network(IMAGES)
    network.requires_grad_(False)
    network(IMAGES)  # as a teacher


@pytest.mark.parametrize('kind', ['VanillaNet, n = 1', 'ResNet-18, deep convolutions'])
def test_merged_weights_train_unless_an_optimizer_holds_others(kind):
    weights = merge_deep_convs(build(kind)).state_dict()
    network = build(kind, seed=1)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.load_state_dict(weights)
    with pytest.raises(UsageError, match='after its optimizer was made.*merged=True'):
        network(IMAGES)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sum(x.square().mean() for x in network(IMAGES)).backward()
    optimizer.step()
    for name, value in network.named_parameters():
        if name.endswith('conv.conv.weight'):
            assert not torch.equal(value, weights[name])


@pytest.mark.parametrize('fold', [merge_deep_convs, switch_to_deploy])
def test_folding_in_place_beside_an_optimizer(fold):
    network = build('classifier')
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    fold(network, inplace=True).train()
    with pytest.raises(UsageError, match='changed its form .*make the optimizer afterwards'):
        network(IMAGES)
    del optimizer


def test_what_holds_old_parameters_is_no_optimizer():
    network = build('classifier').train()
    kept = dict(network.named_parameters()), network(IMAGES)
    network.load_state_dict(merge_deep_convs(build('classifier', seed=1)).state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(IMAGES).mean().backward()
    optimizer.step()
    assert len(kept[0]) > len(optimizer.param_groups[0]['params'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['merged', 'deploy'])
def test_weights_of_low_precision_are_folded_in_that_of_the_network(form, dtype):
    weights = build('VanillaNet, n = 1').to(dtype).state_dict()
    deep, network = build('VanillaNet, n = 1'), build('VanillaNet, n = 1', form, seed=1)
    for each in (deep, network):
        each.load_state_dict(weights)
    assert relative_error(outputs(network), outputs(deep)) < 1e-5


@pytest.mark.parametrize('load', LOADERS)
def test_weights_without_lambda_are_of_lambda_one(load):
    source, network = build('VanillaNet, n = 1'), build('VanillaNet, n = 1', seed=1)
    set_deep_training_lambda(network, 0.3)
    load(network, {k: v for k, v in source.state_dict().items() if '_extra_state' not in k})
    assert torch.equal(outputs(network), outputs(source))


@needs_torch('2.0', 'torch.compile')
@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('prefix', ['', '_orig_mod.', 'module.module.'])
def test_a_part_is_compiled(prefix, load):
    """Keys load with and without the prefix of the compiled part, whatever precedes them."""
    networks = [build('classifier', seed=seed) for seed in (0, 1)]
    expected = outputs(networks[0])
    for network in networks:
        network.backbone.blocks[1] = torch.compile(network.backbone.blocks[1], backend='eager')
    for form in FORMS.values():
        weights = form(networks[0]).state_dict()
        network = copy.deepcopy(networks[1])
        load(network, {prefix + k: v for k, v in weights.items()})
        assert relative_error(outputs(network), expected) < 1e-5
        plain = {k.replace('_orig_mod.', ''): v for k, v in weights.items()}
        again = copy.deepcopy(networks[1])
        load(again, plain)
        assert relative_error(outputs(again), expected) < 1e-5


def test_a_network_with_names_like_the_authors():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.Sequential(Layer(), Layer())

        def forward(self, x):
            return self.stages(x)

    network = add_series_activation(Network(), 1, input_shape=(3, 8, 8))
    weights = {k: v + 1 for k, v in network.state_dict().items()}
    network.load_state_dict(weights)
    assert torch.equal(network.stages[0].conv.weight, weights['stages.0.conv.weight'])


def test_layers_that_somebody_changed_load_their_own_weights():
    for change in (
        fuse_conv_bn,
        lambda network: prune.random_unstructured(network.stem.conv.conv1, 'weight', 0.5),
        lambda network: network.stem.conv.conv1.register_buffer('total_ops', torch.zeros(1)),
    ):
        network = build('VanillaNet, n = 1')
        change(network)
        expected = outputs(network)
        weights = copy.deepcopy(network.state_dict())
        for parameter in network.parameters():
            parameter.data.zero_()
        network.load_state_dict(weights)
        assert torch.equal(outputs(network), expected)
    load_state_dict(build('VanillaNet, n = 1'), weights)  # with an extra key


def test_a_missing_layer_is_named():
    weights = VanillaNet('5', widen_factor=1 / 64, act_num=1).state_dict()
    for form in FORMS:
        with pytest.raises(UsageError, match=r'a\.pth does not fit VanillaNet: missing: blocks\.3'):
            load_weights(build('VanillaNet, n = 1', form), weights, 'a.pth')


def test_loaded_in_inference_mode_and_trained_later():
    network = build('VanillaNet, n = 1', seed=1)
    with torch.inference_mode():
        network.load_state_dict(merge_deep_convs(build('VanillaNet, n = 1')).state_dict())
    network.train()
    sum(x.mean() for x in network(IMAGES)).backward()


def test_a_layer_in_two_places():
    def make(seed):
        layer = randomize(DeepConv(3, 3), seed)
        return nn.ModuleDict(dict(one=layer, other=layer))

    for fold in FORMS.values():
        source, network = make(0), make(1)
        load_weights(network, fold(source).state_dict(), 'a.pth', strict=True)
        x = torch.rand(1, 3, 4, 4)
        for model in (source, network):
            model.eval()
        torch.testing.assert_close(network.other(x), source.one(x), rtol=1e-4, atol=1e-5)
        check_fused(source, switch_to_deploy(source))


@pytest.mark.parametrize(
    'change',
    [
        lambda n: prune.l1_unstructured(n.stem.conv.conv1, 'weight', 0.3),
        lambda n: prune.l1_unstructured(n.stem.act.conv, 'weight', 0.3),
        pytest.param(
            lambda n: torch.nn.utils.parametrizations.weight_norm(n.stem.conv.conv2),
            marks=needs_torch('2.1', 'this parametrization'),
        ),
    ],
)
@pytest.mark.parametrize('form', ['merged', 'deploy'])
def test_pruned_and_parametrized_layers_fold(form, change):
    network = build('VanillaNet, n = 1')
    change(network)
    network.eval()
    with torch.no_grad():
        expected = outputs(network)
    for fold in {FORMS[form], switch_to_deploy}:
        again = fold(network, inplace=True)
        assert relative_error(outputs(again), expected) < 1e-5


def test_an_old_optimizer_may_live_on():
    network = build('classifier').train()
    old = torch.optim.SGD(network.parameters(), lr=0.1)
    network.load_state_dict(merge_deep_convs(build('classifier', seed=1)).state_dict())
    new = torch.optim.SGD(network.parameters(), lr=0.1)
    network(IMAGES).mean().backward()
    new.step()
    assert len(old.param_groups[0]['params']) > len(new.param_groups[0]['params'])


def test_an_averaged_copy_takes_the_form():
    source = build('classifier')
    for form in FORMS.values():
        averaged = ExponentialMovingAverage(build('classifier', seed=1))
        averaged.load_state_dict(
            {
                **{f'module.{k}': v for k, v in form(source).state_dict().items()},
                'steps': torch.tensor(3),
            }
        )
        assert relative_error(outputs(averaged.module), outputs(source)) < 1e-5


@needs_torch('2.1', 'load_state_dict(assign=)')
def test_assigned_weights_have_the_precision_of_the_given():
    for weights_form in FORMS:
        weights = FORMS[weights_form](build('VanillaNet, n = 1')).state_dict()
        for form in FORMS:
            network = build('VanillaNet, n = 1', form, seed=1)
            network.load_state_dict(weights, assign=True)
            assert {p.dtype for p in network.parameters()} == {torch.float32}
            assert relative_error(outputs(network), outputs(build('VanillaNet, n = 1'))) < 1e-5


def test_a_new_activation_is_one_class():
    """A new layer that folds needs only these methods; no other code asks for its class."""

    class Doubled(SeriesActivation):
        def activate(self, x):
            return 2 * super().activate(x)

        def fold_weights(self, state_dict, prefix, form):
            folds = form == 'deploy' != self.form_in(state_dict, prefix)
            if folds:
                state_dict[f'{prefix}conv.weight'] = 2 * state_dict[f'{prefix}conv.weight']
            super().fold_weights(state_dict, prefix, form)

        def forward(self, x):
            fused = self.form == 'deploy'
            return SeriesActivation.activate(self, x) if fused else super().forward(x)

    network = build('VanillaNet, n = 1')
    network.stem.act = randomize(Doubled(8, 1)).eval()
    fused = switch_to_deploy(network)
    assert relative_error(outputs(fused), outputs(network)) < 1e-5
    again = copy.deepcopy(network)
    again.load_state_dict(fused.state_dict())
    assert relative_error(outputs(again), outputs(network)) < 1e-5
