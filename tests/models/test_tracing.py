"""Tracers, scripts and quantizers of torch on networks in every form."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.networks import FORMS, randomize, relative_error
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.jit import _recursive as recursive
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from mmvanilla import (
    VanillaNet,
    VanillaNetClsHead,
    add_deep_training,
    add_series_activation,
    merge_deep_convs,
    set_deep_training_lambda,
    switch_to_deploy,
)
from mmvanilla.models import DeepConv, SeriesActivation

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_stale_builtins(monkeypatch):
    """torch.jit finds builtins by their ids, also those of freed ones, which a list may have now.

    Other tests free some: torch replaces operators whose overloads change.
    """
    find = recursive._find_builtin
    monkeypatch.setattr(recursive, '_find_builtin', lambda x: find(x) if callable(x) else None)


FORM = pytest.mark.parametrize('form', FORMS)


def network(form='deep', value=1.0, **kwargs):
    torch.manual_seed(0)
    settings = dict(arch='5', widen_factor=1 / 64, act_num=1, out_indices=(0, 1, 2, 3), **kwargs)
    backbone = FORMS[form](randomize(VanillaNet(**settings)))
    set_deep_training_lambda(backbone, value)
    return backbone


def small_network():
    """A network of another kind with both techniques."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU())
    model = add_series_activation(add_deep_training(nn.Sequential(*layers)), act_num=1)
    return randomize(model)


def assert_same(got, expected):
    for one, other in zip(got, expected):
        assert relative_error(one, other) < 1e-5


@FORM
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kwargs', [{}, dict(with_cp=True), dict(shortcut='before_act')])
def test_fx(form, training, kwargs):
    backbone = network(form, 0.3 if form == 'deep' else 1, **kwargs).train(training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(backbone))
    assert_same(traced(X), backbone(X))
    called = {node.op for node in traced.graph.nodes}
    assert 'call_module' in called
    assert_same(torch.jit.script(traced.eval())(X), backbone.eval()(X))


@FORM
def test_script(form):
    backbone = network(form, 0.3 if form == 'deep' else 1).eval()
    scripted = torch.jit.script(backbone)
    assert_same(scripted(X), backbone(X))
    larger = torch.randn(1, 3, 96, 128)
    assert_same(scripted(larger), backbone(larger))
    outer = nn.Sequential(network(form).stem, nn.ReLU()).eval()
    assert_same(torch.jit.script(outer)(X), outer(X))


@pytest.mark.parametrize(
    'layer', [DeepConv(3, 8, 3, merged=True), DeepConv(3, 8), SeriesActivation(3)]
)
def test_script_of_layers(layer):
    layer = randomize(layer).eval()
    assert_same(torch.jit.script(layer)(X), layer(X))


def test_other_networks():
    model = small_network().eval()
    for each in (model, merge_deep_convs(model), switch_to_deploy(model)):
        assert_same(torch.fx.symbolic_trace(each)(X), each(X))
        assert_same(torch.jit.script(each)(X), each(X))
        assert_same(torch.jit.trace(each, X)(X), each(X))


@FORM
def test_head(form):
    pytest.importorskip('mmpretrain')
    head = FORMS[form](randomize(VanillaNetClsHead(num_classes=3, in_channels=8))).eval()
    features = (torch.randn(2, 8, 4, 4),)
    assert_same(torch.fx.symbolic_trace(head)(features), head(features))


@FORM
@pytest.mark.parametrize('training', [False, True])
def test_feature_extractor(form, training):
    backbone = network(form, 0.3 if form == 'deep' else 1).train(training)
    found = create_feature_extractor(backbone, {'stem': 'first', 'blocks.1': 'second'})
    found = found.train(training)(X)
    first = backbone.stem(X)
    assert_same(
        [found['first'], found['second']], [first, backbone.blocks[1](backbone.blocks[0](first))]
    )


@pytest.mark.parametrize('form', ['deep', 'merged'])
def test_efficient_conv_bn_eval(form):
    """mmengine's faster fine-tuning with norms in eval mode finds the pairs of our layers."""
    backbone, other = (network(form, norm_eval=True).train() for _ in range(2))
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=other)), 'backbone')
    found = str(other.forward.__self__.graph).count('efficient_conv_bn_eval_control')
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert found == layers
    for each in (backbone, other):
        sum(y.square().mean() for y in each(X)).backward()
    for name, param in other.named_parameters():
        expected = dict(backbone.named_parameters())[name].grad
        torch.testing.assert_close(param.grad, expected, rtol=1e-3, atol=1e-3)


def test_fx_quantization():
    engine = torch.backends.quantized.engine
    qconfig = quantization.get_default_qconfig_mapping('x86')
    backbone = switch_to_deploy(network())
    prepared = quantize_fx.prepare_fx(copy.deepcopy(backbone), qconfig, (X,))
    prepared(X)
    converted = quantize_fx.convert_fx(prepared)
    kinds = [type(m).__module__ for m in converted.modules()]
    assert sum('quantized' in kind for kind in kinds) >= 8  # two convolutions per layer
    for got, expected in zip(converted(X), backbone(X)):
        assert relative_error(got, expected) < 0.4
    torch.backends.quantized.engine = engine


@pytest.mark.parametrize('form', ['merged', 'deploy'])
def test_quantization_aware_training_by_type(form):
    model = nn.Sequential(quantization.QuantStub(), network(form)).train()
    model.qconfig = quantization.get_default_qat_qconfig('x86')
    prepared = quantization.prepare_qat(model)
    convs = [m for m in prepared.modules() if isinstance(m, nn.Conv2d)]
    assert convs and all(hasattr(conv, 'weight_fake_quant') for conv in convs)
    prepared(X)[-1].square().mean().backward()
    assert all(conv.weight.grad is not None for conv in convs)


@FORM
@pytest.mark.parametrize('value', [0.3, 1.0])
def test_copies_and_pickles(form, value):
    backbone = network(form, value if form == 'deep' else 1).eval()
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert_same(other(X), backbone(X))
        assert {m.form for m in other.modules() if isinstance(m, DeepConv)} == {form}


def spawned(_, backbone, x, folder):
    torch.save(backbone(x), folder / 'outputs.pth')


@FORM
def test_spawned_processes(form, tmp_path):
    backbone = network(form).eval()
    torch.multiprocessing.spawn(spawned, (backbone, X, tmp_path))
    assert_same(torch.load(tmp_path / 'outputs.pth'), backbone(X))


@pytest.mark.parametrize('form', ['deep', 'merged'])
@pytest.mark.parametrize('kwargs', [dict(norm_eval=True), dict(norm_eval=True, with_cp=True)])
def test_function_transforms(form, kwargs):
    """torch.func and forward-mode gradients in training, and vmap."""
    func = pytest.importorskip('torch.func', reason='new in torch 2.0')
    model = network(form, 0.3 if form == 'deep' else 1, **kwargs).double().train()
    x = X.double()
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x):
        return func.functional_call(model, params, (x,))[-1].square().mean()

    expected = torch.autograd.grad(model(x)[-1].square().mean(), list(model.parameters()))
    got = func.grad(loss)(params, x)
    for one, other in zip(got.values(), expected):
        torch.testing.assert_close(one, other)
    tangents = {name: torch.ones_like(p) for name, p in params.items()}
    _, slope = func.jvp(lambda p: loss(p, x), (params,), (tangents,))
    torch.testing.assert_close(slope, sum(gradient.sum() for gradient in expected))
    each = func.vmap(func.grad(loss), (None, 0))(params, x[:, None])
    alone = func.grad(loss)(params, x[:1])
    for name, gradient in each.items():
        torch.testing.assert_close(gradient[0], alone[name])


def test_networks_with_shared_relus():
    """A ReLU that is called several times traces again after a call, and works in threads."""
    model = randomize(add_series_activation(resnet18(), act_num=1)).eval()
    with torch.no_grad():
        expected = model(X)
        assert_same(torch.fx.symbolic_trace(model)(X), expected)
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _: model.eval()(X), range(16)):
                assert torch.equal(got, expected)
