import copy
import io

import pytest
import torch
from helpers.networks import randomize

from mmvanilla import UsageError, merge_deep_convs, set_deep_training_lambda, switch_to_deploy
from mmvanilla.models import DeepConv

X = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def make_deep_conv(out_channels=5, **kwargs):
    return randomize(DeepConv(3, out_channels, **kwargs)).double().eval()


@pytest.mark.parametrize('value', [0.0, 0.3, 1.0])
def test_equation_1(value):
    conv = make_deep_conv()
    set_deep_training_lambda(conv, value)
    middle = conv.norm1(conv.conv1(X))
    expected = conv.norm(conv.conv2((1 - value) * middle.relu() + value * middle))
    torch.testing.assert_close(conv(X), expected)


@pytest.mark.parametrize('final_norm', [True, False])
@pytest.mark.parametrize(
    'geometry',
    [
        {},
        dict(kernel_size=4, stride=4),
        dict(kernel_size=4, stride=3, padding=1),
        dict(kernel_size=(3, 5), padding='same', dilation=2, padding_mode='reflect'),
        dict(kernel_size=3, groups=3, padding=1, mid_channels=6, out_channels=9),
    ],
)
def test_forms_compute_the_same(geometry, final_norm):
    deep = make_deep_conv(final_norm=final_norm, **{'mid_channels': 5, **geometry})
    expected = deep(X)
    merged = merge_deep_convs(deep)
    deploy = switch_to_deploy(deep)
    for network, has_norm in ((merged, final_norm), (deploy, False)):
        assert dict(network.named_children()).keys() == {'conv', 'norm'}
        assert isinstance(network.norm, torch.nn.BatchNorm2d if has_norm else torch.nn.Identity)
    for network in (merged, deploy, switch_to_deploy(merged), merge_deep_convs(merged)):
        torch.testing.assert_close(network(X), expected, rtol=1e-12, atol=1e-12)
    assert deep.is_deep and not deploy.is_deep


def test_merged_form_trains():
    merged = merge_deep_convs(make_deep_conv()).train()
    merged(X).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in merged.parameters())


def test_fresh_lambda_is_one():
    assert DeepConv(3, 5).lambda_ == 1


@pytest.mark.parametrize('value', [0.4, 1 / 3, 0.1 + 0.2])
def test_lambda_travels_exactly(value):
    conv = make_deep_conv()
    set_deep_training_lambda(conv, value)
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    file.seek(0)
    other = DeepConv(3, 5).double().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.lambda_ == value
    assert torch.equal(other(X), conv(X))


def test_state_dict_holds_tensors_alone():
    assert all(isinstance(value, torch.Tensor) for value in DeepConv(3, 5).state_dict().values())


@pytest.mark.parametrize('function', [merge_deep_convs, switch_to_deploy])
@pytest.mark.parametrize('inplace', [True, False])
def test_fusing_below_one_is_refused(function, inplace):
    network = torch.nn.Sequential(DeepConv(3, 5), DeepConv(5, 5))
    network[1].lambda_ = 0.4
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UsageError, match='λ = 0.4'):
        function(network, inplace=inplace)
    assert network.state_dict().keys() == before.keys()


@pytest.mark.parametrize('value', [-0.1, 1.1, float('nan')])
def test_lambda_out_of_range(value):
    with pytest.raises(UsageError, match='λ must be from 0 to 1'):
        set_deep_training_lambda(DeepConv(3, 5), value)


def test_merged_conv_has_lambda_one():
    merged = merge_deep_convs(DeepConv(3, 5))
    set_deep_training_lambda(merged, 1)
    with pytest.raises(UsageError, match='merged'):
        set_deep_training_lambda(merged, 0.5)
