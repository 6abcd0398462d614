import pytest
import torch
from helpers.networks import randomize

from mmvanilla import SeriesActivation, UsageError


@pytest.mark.parametrize('act_num', range(5))
def test_equation_6(act_num):
    """sum over i, j of a_ijc ReLU(x) at (h + i, w + j), then the norm."""
    layer = randomize(SeriesActivation(3, act_num)).double().eval()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    n, (height, width) = act_num, x.shape[2:]
    padded = torch.nn.functional.pad(x.relu(), (n, n, n, n))
    expected = torch.zeros_like(x)
    for i in range(2 * n + 1):
        for j in range(2 * n + 1):
            a = layer.conv.weight[:, 0, i, j].view(1, -1, 1, 1)
            expected += a * padded[:, :, i : i + height, j : j + width]
    torch.testing.assert_close(layer(x), layer.norm(expected))


@pytest.mark.parametrize('act_num', range(5))
def test_switch_to_deploy(act_num):
    layer = randomize(SeriesActivation(4, act_num)).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    expected = layer(x)
    layer.switch_to_deploy()
    layer.switch_to_deploy()  # idempotent
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    built = SeriesActivation(4, act_num, deploy=True).double()
    built.load_state_dict(layer.state_dict())
    torch.testing.assert_close(built(x), expected, rtol=1e-12, atol=1e-12)


def test_negative_series_number():
    with pytest.raises(UsageError, match='act_num must be 0 or more, got -1'):
        SeriesActivation(4, -1)


def test_input_is_left_alone():
    x = torch.randn(1, 2, 4, 4)
    copy = x.clone()
    SeriesActivation(2)(x)
    assert torch.equal(x, copy)


def test_layouts_train_alike():
    """On a CPU, gradients are computed in the faster layout; input and output keep theirs."""
    activation = randomize(SeriesActivation(6)).double()
    grads = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        out = activation(x)
        assert out.is_contiguous(memory_format=memory_format)
        out.square().sum().backward()
        grads.append((out, x.grad, activation.conv.weight.grad.clone()))
        activation.zero_grad()
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
