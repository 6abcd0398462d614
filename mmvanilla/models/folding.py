"""Folding of linear layers into one convolution: pure functions on tensors, in float64.

Paper section 3.1: equation 2 folds a batch norm into the convolution before it, equation 4 merges
two convolutions of which the second is 1x1.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

WeightBias = Tuple[Tensor, Tensor]


def fuse_conv_bn(weight: Tensor, bias: Optional[Tensor], bn: _BatchNorm) -> WeightBias:
    """Folds a batch norm, in its eval-mode function, into the convolution before it (equation 2).

    Args:
        weight: Convolution weight, (C_out, C_in / groups, k, k).
        bias: Convolution bias, (C_out,), or None for zero.
        bn: The batch norm over C_out channels.

    Returns:
        Weight and bias in float64, of the same shapes.
    """
    mean, var = bn.running_mean.double(), bn.running_var.double()
    scale = (var + bn.eps).rsqrt()  # (C_out,)
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -mean if bias is None else bias.double() - mean
    fused_bias = shift * scale
    if bn.bias is not None:
        fused_bias = fused_bias + bn.bias.double()
    return weight.double() * scale.view(-1, 1, 1, 1), fused_bias


def merge_convs(first: WeightBias, second: WeightBias, groups: int = 1) -> WeightBias:
    """Merges ``second(first(x))`` into one convolution (equation 4).

    Args:
        first: Weight (C_mid, C_in / groups, k, k) and bias (C_mid,) of a convolution of any kernel
            size, stride, dilation and padding.
        second: Weight (C_out, C_mid / groups, 1, 1) and bias (C_out,) of a 1x1 convolution.
        groups: Groups of both.

    Returns:
        Weight (C_out, C_in / groups, k, k) and bias (C_out,) in float64.
    """
    weight1, bias1 = (t.double() for t in first)
    weight2, bias2 = (t.double() for t in second)
    # (groups, C_out / groups, C_mid / groups)
    matrices = weight2.view(groups, -1, weight2.shape[1])
    weight = matrices @ weight1.view(groups, matrices.shape[2], -1)
    bias = matrices @ bias1.view(groups, -1, 1)
    return weight.view(len(weight2), *weight1.shape[1:]), bias.flatten() + bias2


def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution that holds ``weight`` and ``bias`` and is like ``conv`` in all else.

    The values are copied into freshly allocated parameters: the products above may have odd
    strides, which torch would keep, and then quietly run a slower memory format.
    """
    fused = type(conv)(
        conv.in_channels,
        len(weight),
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        fused.weight.copy_(weight)
        fused.bias.copy_(bias)
    return fused.requires_grad_(conv.weight.requires_grad)
