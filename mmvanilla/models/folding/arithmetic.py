"""Folding of linear layers into one convolution: pure functions on tensors, in float64.

Paper section 3.1: equation 2 folds a batch norm into the convolution before it, equation 4 merges
two convolutions of which the second is 1x1.
"""

from typing import Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

WeightBias = Tuple[Tensor, Tensor]


def fuse_conv_bn(
    weight: Tensor, bias: Optional[Tensor], norm: Mapping[str, Tensor], eps: float
) -> WeightBias:
    """Folds a batch norm, in its eval-mode function, into the convolution before it (equation 2).

    Args:
        weight: Convolution weight, (C_out, C_in / groups, k, k).
        bias: Convolution bias, (C_out,), or None for zero.
        norm: State dict of the batch norm over C_out channels; one without statistics is folded
            already, and changes nothing.
        eps: Of the batch norm.

    Returns:
        Weight and bias in float64, of the same shapes.
    """
    weight = _double(weight)
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else _double(bias)
    if 'running_var' not in norm:
        return weight, bias
    norm = {name: _double(value) for name, value in norm.items()}
    scale = (norm['running_var'] + eps).rsqrt()  # (C_out,)
    if 'weight' in norm:
        scale = scale * norm['weight']
    bias = (bias - norm['running_mean']) * scale
    if 'bias' in norm:
        bias = bias + norm['bias']
    return weight * scale.view(-1, 1, 1, 1), bias


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
    weight1, bias1 = (_double(t) for t in first)
    weight2, bias2 = (_double(t) for t in second)
    # (groups, C_out / groups, C_mid / groups)
    matrices = weight2.view(groups, -1, weight2.shape[1])
    weight = matrices @ weight1.view(groups, matrices.shape[2], -1)
    bias = matrices @ bias1.view(groups, -1, 1)
    return weight.view(len(weight2), *weight1.shape[1:]), bias.flatten() + bias2


def conv_like(conv: nn.Conv2d, out_channels: int) -> nn.Conv2d:
    """A convolution with a bias and ``out_channels``, like ``conv`` in all else; its weights, in
    freshly allocated memory, are to be loaded.
    """
    other = type(conv)(
        conv.in_channels,
        out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    return other.requires_grad_(conv.weight.requires_grad).train(conv.training)


def part(state_dict: Mapping[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    """The weights whose keys begin with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}


def take(state_dict: Dict[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    """``part``, which it takes out of the state dict."""
    taken = part(state_dict, prefix)
    for name in taken:
        del state_dict[prefix + name]
    return taken


def put_conv(
    state_dict: Dict[str, Tensor], prefix: str, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> None:
    """Puts a folded convolution into a state dict, in a precision and freshly allocated memory.

    The products above may have odd strides, with which torch would quietly run a slower memory
    format.
    """
    for name, value in (('weight', weight), ('bias', bias)):
        fresh = torch.empty(value.shape, dtype=dtype, device=value.device)
        state_dict[f'{prefix}conv.{name}'] = fresh.copy_(value)


def _double(values: Tensor) -> Tensor:
    values = values.detach()
    return (values.cpu() if values.device.type == 'mps' else values).double()  # MPS has no float64
