import pytest
import torch
from helpers.networks import randomize
from torch import nn

from mmvanilla.models.folding.arithmetic import fold_norm, merge_convs, put_conv


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('groups', [1, 6])
def test_fold_norm(affine, bias, groups):
    conv = nn.Conv2d(6, 12, 3, padding=1, groups=groups, bias=bias).double()
    bn = nn.BatchNorm2d(12, eps=1e-6, affine=affine).double().eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    if affine:
        randomize(bn)
    weight, fused_bias = fold_norm(conv.weight, conv.bias, bn.state_dict(), bn.eps)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    fused = nn.functional.conv2d(x, weight, fused_bias, padding=1, groups=groups)
    torch.testing.assert_close(fused, bn(conv(x)), rtol=1e-12, atol=1e-12)


def test_fold_norm_computes_in_float64():
    weight, bias = fold_norm(torch.randn(4, 3, 1, 1), None, nn.BatchNorm2d(4).state_dict(), 1e-5)
    assert weight.dtype == bias.dtype == torch.float64


@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding', 'dilation'),
    [(1, 1, 0, 1), (4, 4, 0, 1), (4, 3, 1, 1), ((3, 5), (2, 1), (1, 2), 2)],
)
@pytest.mark.parametrize('groups', [1, 3])
def test_merge_convs(kernel, stride, padding, dilation, groups):
    first = nn.Conv2d(6, 9, kernel, stride, padding, dilation, groups).double()
    second = nn.Conv2d(9, 12, 1, groups=groups).double()
    weight, bias = merge_convs((first.weight, first.bias), (second.weight, second.bias), groups)
    x = torch.randn(2, 6, 13, 11, dtype=torch.float64)
    merged = nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(merged, second(first(x)), rtol=1e-12, atol=1e-12)


def test_folded_weights_are_contiguous():
    odd = torch.randn(6, 8, dtype=torch.float64).t().view(8, 6, 1, 1)
    assert odd.stride() != torch.empty(8, 6, 1, 1).stride()
    weights = {}
    put_conv(weights, 'a.', odd, torch.zeros(8), torch.float32)
    weight = weights['a.conv.weight']
    assert weight.stride() == torch.empty(8, 6, 1, 1).stride()
    assert weight.dtype == weights['a.conv.bias'].dtype == torch.float32
    torch.testing.assert_close(weight.double(), odd, rtol=1e-6, atol=1e-6)
