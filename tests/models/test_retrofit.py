"""Deep training and series activation on networks of other packages (Table 2)."""

import copy
import pickle

import mmcv.cnn
import pytest
import torch
from helpers.networks import randomize, relative_error
from helpers.pairs import zip_equal
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models.backbones import AlexNet
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from mmvanilla import (
    SeriesActivation,
    UsageError,
    VanillaNet,
    add_deep_training,
    add_series_activation,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models import DeepConv
from mmvanilla.models.folding.network import check_fused, form_of
from mmvanilla.registry import MODELS

IMAGES = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    'AlexNet': dict(type='mmpretrain.AlexNet'),
    'ResNet-50': dict(type='mmpretrain.ResNet', depth=50),
    'ResNet-18': dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
}
TECHNIQUES = {
    'deep training': dict(deep_training=True, act_num=None),
    'series activation': dict(deep_training=False, act_num=2),
    'both': dict(deep_training=True, act_num=2),
}


def build(name, **techniques):
    model = MODELS.build(
        dict(type='mmvanilla.with_techniques', network=NETWORKS[name], **techniques)
    )
    randomize(model).eval()  # not returned: in mmpretrain, eval() of a backbone returns None
    return model


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ('name', 'techniques'),
    [
        pytest.param(name, techniques, marks=pytest.mark.slow)
        if name == 'ResNet-50' and techniques != 'both'
        else (name, techniques)
        for name in NETWORKS
        for techniques in TECHNIQUES
    ],
)
def test_fuses_to_the_same(name, techniques):
    techniques = TECHNIQUES[techniques]
    model = build(name, **techniques)
    expected = model(IMAGES)[-1]
    assert expected.std() > 0.01 * expected.abs().max()
    merged = merge_deep_convs(model)
    fused = switch_to_deploy(model)
    check_fused(model, fused)
    for network in (merged, fused, switch_to_deploy(merged)):
        assert relative_error(network(IMAGES)[-1], expected) < 1e-4
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = build(name, deploy=True, **techniques)
    built.load_state_dict(fused.state_dict())
    assert torch.equal(built(IMAGES)[-1], fused(IMAGES)[-1])


def test_every_layer_of_alexnet_has_both():
    model = build('AlexNet', deep_training=True, act_num=3)
    layers = [type(layer) for layer in model.features if not isinstance(layer, nn.MaxPool2d)]
    assert layers == [DeepConv, SeriesActivation] * 5
    first = model.features[0]
    assert first.conv1.weight.shape == (64, 3, 11, 11) and first.conv2.weight.shape == (
        64,
        64,
        1,
        1,
    )
    assert (first.conv1.stride, first.conv1.padding) == ((4, 4), (2, 2))


def test_each_call_of_a_shared_relu_has_its_own():
    """A block of ResNet-50 calls one ReLU three times, on 64, 64 and 256 channels."""
    model = build('ResNet-50', deep_training=False, act_num=1)
    convs = 1 + 16 * 3
    assert count(model, SeriesActivation) == convs
    relu = model.layer1[0].relu
    assert [act.conv.in_channels for act in relu] == [64, 64, 256]
    assert isinstance(model.relu, SeriesActivation)


def test_equation_6_in_resnet():
    """The activations replace the ReLUs in the same places and in the same order."""
    block = build('ResNet-18', deep_training=False, act_num=1).layer1[0]
    x = torch.randn(2, 8, 6, 6)
    first, second = block.relu
    expected = second(block.norm2(block.conv2(first(block.norm1(block.conv1(x))))) + x)
    for _ in range(2):
        torch.testing.assert_close(block(x), expected)


def test_lambda_moves_the_output():
    model = build('ResNet-18', deep_training=True, act_num=None)
    at_one = model(IMAGES)[-1]
    set_deep_training_lambda(model, 0.5)
    assert relative_error(model(IMAGES)[-1], at_one) > 0.01
    with pytest.raises(UsageError, match='λ = 0.5'):
        switch_to_deploy(model)


def test_names_and_attributes_of_the_network_stay():
    plain = MODELS.build(NETWORKS['ResNet-18'])
    model = build('ResNet-18', deep_training=True, act_num=3)
    assert type(model) is type(plain)
    kept = {name for name in plain.state_dict() if 'bn' in name}
    assert kept and kept <= model.state_dict().keys()
    assert model.norm1_name == plain.norm1_name
    model.init_weights()  # ResNet's own method: the last norm of each block starts at zero
    assert not model.layer1[0].norm2.weight.any()


class OnVectorsToo(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(self.conv(x)).mean((2, 3)))


class InList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.ReLU()])

    def forward(self, x):
        conv, relu = self.layers
        return relu(conv(relu(x)))


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (
            dict(type='mmpretrain.ResNet', depth=18, with_cp=True),
            r"layer1.0.relu is called several .*\(with_cp=True\).*skip=\('layer1.0.relu',\)",
        ),
        (InList(), 'layers.1 is called several times, but not by the ModuleList'),
        (
            dict(type='mmdet.ResNet', depth=18, frozen_stages=1),
            'layer1.0.relu is among frozen layers',
        ),
        (OnVectorsToo(), 'relu is called with different numbers of channels'),
    ],
    ids=['recomputed', 'parent not called', 'frozen', 'on vectors too'],
)
def test_relus_are_refused_by_name(model, message):
    """A ReLU is refused if series activations could not learn, or not tell its calls apart."""
    model = MODELS.build(model) if isinstance(model, dict) else model
    with pytest.raises(UsageError, match=message):
        add_series_activation(model)


def test_copy_leaves_the_network():
    plain = MODELS.build(NETWORKS['ResNet-18'])
    plain.eval()
    expected = plain(IMAGES)[-1]
    model = add_series_activation(add_deep_training(plain))
    assert torch.equal(plain(IMAGES)[-1], expected)
    assert (count(plain, DeepConv), count(model, DeepConv)) == (0, 20)
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES)[-1], model(IMAGES)[-1])
        assert list(other.layer1[0].relu.turns.values()) == [2]


def test_seed_gives_the_weights():
    """The order of layers in memory, which differs between processes, does not matter."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(add_deep_training(MODELS.build(NETWORKS['AlexNet'])))
        kept = [nn.Conv2d(1, 1, 1) for _ in range(100)]  # so that memory is used differently
    for one, other in zip_equal(*(model.parameters() for model in models)):
        assert torch.equal(one, other)
    assert kept


def test_order_and_repetition_do_not_matter():
    plain = MODELS.build(NETWORKS['AlexNet'])
    one = add_series_activation(add_deep_training(plain))
    other = add_deep_training(add_series_activation(plain))
    assert one.state_dict().keys() == other.state_dict().keys()
    with pytest.raises(UsageError, match='AlexNet has no convolution'):
        add_deep_training(one)
    with pytest.raises(UsageError, match='AlexNet calls no nn.ReLU'):
        add_series_activation(one)


def test_relus_on_vectors_stay():
    model = MODELS.build(dict(type='mmpretrain.AlexNet', num_classes=10))
    model = add_series_activation(model)
    assert count(model.features, SeriesActivation) == 5
    assert count(model.classifier, nn.ReLU) == 2 and not count(model.classifier, SeriesActivation)


def test_skip():
    model = MODELS.build(NETWORKS['ResNet-18'])
    skipped = add_deep_training(model, skip=('conv1', 'layer4'))
    assert type(skipped.conv1) is nn.Conv2d and count(skipped.layer4, DeepConv) == 0
    assert count(skipped, DeepConv) == 20 - 1 - 5


def test_skip_of_one_name():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(11)))
    skipped = add_deep_training(model, skip='10')
    assert [type(layer) for layer in skipped] == [DeepConv] * 10 + [nn.Conv2d]


def test_plain_convolutions_of_mmcv():
    model = nn.Sequential(mmcv.cnn.bricks.Conv2d(3, 3, 3))
    assert type(add_deep_training(model)[0]) is DeepConv


@pytest.mark.parametrize('function', [add_deep_training, add_series_activation])
def test_unknown_names_in_skip(function):
    with pytest.raises(UsageError, match='ResNet has no layer layer9: take it out of skip'):
        function(MODELS.build(NETWORKS['ResNet-18']), skip=('layer1', 'layer9'))


def test_squeeze_and_excite_stays():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.ReLU())
    model = add_series_activation(model)
    assert [type(layer) for layer in (model[1], model[3])] == [SeriesActivation, nn.ReLU]


def test_shared_layers_stay_shared():
    conv = nn.Conv2d(3, 3, 1)
    block = nn.Sequential(conv, nn.ReLU())
    model = add_series_activation(add_deep_training(nn.Sequential(block, block, conv)))
    assert model[0] is model[1] and model[0][0] is model[2]
    assert count(model, DeepConv) == count(model, SeriesActivation) == 1


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std(), bias)


@pytest.mark.parametrize(
    'conv',
    [
        nn.ConvTranspose2d(3, 3, 2),
        Standardized(3, 3, 3),
        nn.Conv3d(3, 3, 1),
        spectral_norm(nn.Conv2d(3, 3, 3)),
    ],
)
def test_other_convolutions_are_refused_by_name(conv):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(conv))
    message = f"1.0 is a {type(conv).__name__}, which does not merge.*skip=\\('1.0',\\)"
    with pytest.raises(UsageError, match=message):
        add_deep_training(model, inplace=True)
    assert type(model[0]) is nn.Conv2d
    assert type(add_deep_training(model, skip=('1.0',))[0]) is DeepConv


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        (
            dict(type='mmdet.ResNet', depth=18, frozen_stages=0),
            r'conv1 is a Conv2d, which is frozen',
        ),
        (
            dict(
                type='mmdet.ResNet',
                depth=50,
                dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
                stage_with_dcn=(False, False, False, True),
            ),
            r'layer4.0.conv2 is a ModulatedDeformConv2dPack, which computes with',
        ),
        (dict(type='mmpretrain.RepVGG', arch='A0'), 'the network is a RepVGG, which folds'),
    ],
    ids=['frozen', 'deformable', 'folding itself'],
)
def test_layers_that_need_their_convolutions_are_refused_by_name(network, message):
    with pytest.raises(UsageError, match=message):
        add_deep_training(MODELS.build(network))


def test_modes_are_kept():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval()
    model = add_series_activation(add_deep_training(model))
    assert not any(module.training for module in model.modules())


def test_wrong_input_shape():
    model = MODELS.build(dict(type='mmpretrain.AlexNet', num_classes=10))
    with pytest.raises(UsageError, match=r'AlexNet cannot be run on an image of \(3, 64, 64\)'):
        add_series_activation(model, input_shape=(3, 64, 64))


def test_vanillanet_has_them_already():
    with pytest.raises(UsageError, match='VanillaNet has no convolution'):
        add_deep_training(VanillaNet('5', widen_factor=1 / 64))


def test_weights_without_deep_training_are_refused():
    """mmengine loads pre-trained weights non-strictly, and would leave the pairs random."""
    plain = MODELS.build(NETWORKS['ResNet-18'])
    model = add_deep_training(plain)
    with pytest.raises(UsageError, match='fit conv1: it has one convolution there'):
        load_state_dict(model, plain.state_dict(), strict=False)


def test_norms_that_never_learn_are_refused():
    """mmdet's ResNet keeps its norms in eval mode by default, to suit pre-trained weights."""
    with pytest.raises(UsageError, match='ResNet has norm_eval=True.*set norm_eval=False'):
        MODELS.build(
            dict(type='mmvanilla.with_techniques', network=dict(type='mmdet.ResNet', depth=18))
        )


@pytest.mark.parametrize('function', [add_deep_training, add_series_activation])
def test_norms_that_never_learn_are_refused_in_any_part(function):
    model = nn.Sequential(MODELS.build(dict(type='mmdet.ResNet', depth=18)))
    with pytest.raises(UsageError, match='ResNet has norm_eval=True.*set norm_eval=False'):
        function(model)
    function(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Sequential(model)), skip='2')


def test_traced():
    """Outside no_grad too, where untraced activations compute in another memory layout."""
    model = build('ResNet-18', deep_training=True, act_num=2)
    for network in (model, switch_to_deploy(model)):
        traced = torch.jit.trace(network, IMAGES)
        assert relative_error(traced(IMAGES)[-1], network(IMAGES)[-1]) < 1e-5


def test_device_and_dtype_are_kept():
    model = add_series_activation(add_deep_training(AlexNet().double()))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize('techniques', TECHNIQUES, ids=TECHNIQUES)
def test_form(techniques):
    deep, act_num = TECHNIQUES[techniques].values()
    model = build('ResNet-18', deep_training=deep, act_num=act_num)
    networks = (model, merge_deep_convs(model), switch_to_deploy(model))
    expected = {
        'deep training': ['deep', 'merged', 'merged'],  # its last two forms are the same
        'series activation': [None, None, None],
        'both': ['deep', 'merged', 'merged'],
    }[techniques]
    assert [form_of(network) for network in networks] == expected
