import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from mmvanilla import UsageError, VanillaNet


class Model(nn.Module):
    def __init__(self, backbone, name='backbone'):
        super().__init__()
        self.add_module(name, backbone)
        self.head = nn.Sequential(nn.Conv2d(64, 4, 1), nn.GroupNorm(2, 4))


def build(model, **paramwise_cfg):
    return build_optim_wrapper(
        model,
        dict(
            constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise_cfg,
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
        ),
    )


def settings(model, optim_wrapper):
    """Learning rate and weight decay of every parameter, by name."""
    names = {param: name for name, param in model.named_parameters()}
    return {
        names[param]: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for param in group['params']
    }


def authors_exponent(name, blocks_per_layer):
    """num_layers - layer_id - 1 for VanillaNet-13's 11 blocks, as in the authors' two recipes."""
    outside = 12 if blocks_per_layer == 1 else 7
    parts = name.split('.')
    if parts[1] == 'stem':
        return outside
    if parts[1] == 'blocks':
        return outside - (int(parts[2]) // blocks_per_layer + 1)
    return 0


@pytest.mark.parametrize(('rate', 'blocks_per_layer'), [(0.6, 2), (0.8, 1)])
@pytest.mark.parametrize('attribute', ['backbone', 'encoder'])
def test_scales_are_the_authors(rate, blocks_per_layer, attribute):
    model = Model(VanillaNet('13', widen_factor=1 / 64), attribute)
    found = settings(model, build(model, decay_rate=rate, blocks_per_layer=blocks_per_layer))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, param in model.named_parameters():
        exponent = authors_exponent(name, blocks_per_layer) if name.startswith(attribute) else 0
        lr, weight_decay = found[name]
        assert lr == pytest.approx(0.1 * rate**exponent), name
        assert weight_decay == (0.05 if param.ndim > 1 else 0), name


def test_coco_recipe_spans_0_6_to_the_7th():
    model = Model(VanillaNet('13', widen_factor=1 / 64))
    rates = {
        group['lr'] / 0.1
        for group in build(model, decay_rate=0.6, blocks_per_layer=2).optimizer.param_groups
    }
    assert sorted(rates) == pytest.approx([0.6**k for k in range(7, -1, -1)])


def test_without_decay_norms_and_biases_still_have_no_weight_decay():
    model = Model(VanillaNet('6', widen_factor=1 / 64))
    found = settings(model, build(model))
    assert {lr for lr, _ in found.values()} == {0.1}
    assert found['head.1.weight'] == (0.1, 0)


def test_frozen_parameters_are_left_out():
    model = Model(VanillaNet('6', widen_factor=1 / 64, frozen_stages=0))
    assert not any('stem' in name for name in settings(model, build(model, decay_rate=0.5)))


def test_backbones_of_mmpretrain():
    ConvNeXt = pytest.importorskip('mmpretrain.models').ConvNeXt
    model = Model(ConvNeXt('atto'))
    rates = {group['lr'] for group in build(model, decay_rate=0.5).optimizer.param_groups}
    assert max(rates) == 0.1 and len(rates) > 4


class Several(nn.Module):
    """Two streams, such as RGB and depth, or a student with its teacher."""

    def __init__(self, **backbones):
        super().__init__()
        for name, backbone in backbones.items():
            self.add_module(name, backbone)
        self.head = nn.Linear(2, 2)


def narrow(arch):
    return VanillaNet(arch, widen_factor=1 / 64)


def test_a_backbone_alone():
    model = narrow('6')
    found = settings(model, build(model, decay_rate=0.5))
    assert found['stem.conv.conv1.weight'] == (0.1 * 0.5**5, 0.05)
    with pytest.raises(UsageError, match='needs an optimizer with lr'):
        build_optim_wrapper(
            model,
            dict(
                constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
                optimizer=dict(type='Adadelta'),
            ),
        )


def test_two_streams():
    """Each backbone has the scales that it has alone."""
    model = Several(rgb=narrow('13'), depth=narrow('6'))
    found = settings(model, build(model, decay_rate=0.5))
    assert found['head.weight'] == (0.1, 0.05)
    for name in ('rgb', 'depth'):
        alone = Model(getattr(model, name), name)
        expected = settings(alone, build(alone, decay_rate=0.5))
        for param, setting in expected.items():
            if param.startswith(name):
                assert found[param] == setting, param
    assert found['rgb.stem.conv.conv1.weight'][0] < found['depth.stem.conv.conv1.weight'][0] < 0.1


def classifier(arch):
    backbone = dict(type='mmvanilla.VanillaNet', arch=arch, widen_factor=1 / 64)
    head = dict(type='mmvanilla.VanillaNetClsHead', num_classes=2, in_channels=64)
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))


@pytest.mark.parametrize('build_network', [narrow, classifier])
@pytest.mark.parametrize('first', ['student', 'teacher'])
def test_a_frozen_teacher(first, build_network):
    """It is left out, wherever it is; mmpretrain's classifiers ask their backbones."""
    pytest.importorskip('mmpretrain')
    networks = dict(student=build_network('6'), teacher=build_network('13').requires_grad_(False))
    order = [first, *(name for name in networks if name != first)]
    model = Several(**{name: networks[name] for name in order})
    found = settings(model, build(model, decay_rate=0.5))
    assert not any(name.startswith('teacher') for name in found)
    assert min(lr for lr, _ in found.values()) == 0.1 * 0.5**5
    assert {name for name, (lr, _) in found.items() if lr == 0.1} == {
        name for name in found if 'stem' not in name and 'blocks' not in name
    }


@pytest.mark.parametrize(
    ('backbone', 'cfg', 'message'),
    [
        (nn.Conv2d(3, 64, 1), dict(decay_rate=0.6), 'Model has no backbone with get_layer_depth'),
        (
            VanillaNet('5', widen_factor=1 / 64),
            dict(num_layers=6),
            'paramwise_cfg has no argument num_layers: it takes decay_rate',
        ),
        (
            VanillaNet('5', widen_factor=1 / 64),
            dict(blocks_per_layer=0),
            'blocks_per_layer must be 1 or more, got 0',
        ),
    ],
)
def test_errors(backbone, cfg, message):
    with pytest.raises(UsageError, match=message):
        build(Model(backbone), **cfg)


def test_groups_survive_a_state_dict():
    model = Model(VanillaNet('6', widen_factor=1 / 64))
    first, second = (build(model, decay_rate=0.6, blocks_per_layer=2) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert [g['layer_id'] for g in second.optimizer.param_groups] == [
        g['layer_id'] for g in first.optimizer.param_groups
    ]
    assert isinstance(second.optimizer, torch.optim.AdamW)
