"""The arithmetic of folding: pure functions on tensors, in float64 (paper section 3.1).

Equation 2 folds a batch norm into the convolution before it; equation 4 merges two convolutions,
of which the second is 1x1.
"""

from typing import Any, Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

WeightBias = Tuple[Tensor, Tensor]


def fold_norm(
    weight: Tensor, bias: Optional[Tensor], norm: Mapping[str, Tensor], eps: float
) -> WeightBias:
    """Folds a batch norm, as it computes in eval mode, into the convolution before it (equation 2).

    Args:
        weight: Convolution weight, (C_out, C_in / groups, k, k).
        bias: Convolution bias, (C_out,), or None for zero.
        norm: State dict of the batch norm over C_out channels; empty if it is folded already.
        eps: The batch norm's eps.

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
    """A convolution like ``conv``, with a bias and ``out_channels``, to load weights into."""
    device, dtype = conv.weight.device, conv.weight.dtype
    other = nn.Conv2d(
        conv.in_channels, out_channels, **geometry_of(conv), device=device, dtype=dtype
    )
    return other.requires_grad_(conv.weight.requires_grad).train(conv.training)


def geometry_of(conv: nn.Conv2d) -> Dict[str, Any]:
    """The arguments of a convolution besides its channels and its bias."""
    names = ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode')
    return {name: getattr(conv, name) for name in names}


def part(state_dict: Mapping[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    """The weights whose keys begin with ``prefix``, which is removed from the keys."""
    return {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}


def take(state_dict: Dict[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    """Like ``part``, but removes the weights from the state dict."""
    taken = part(state_dict, prefix)
    for name in taken:
        del state_dict[prefix + name]
    return taken


def put_conv(
    state_dict: Dict[str, Tensor], prefix: str, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> None:
    """Puts a folded convolution into a state dict, in ``dtype`` and freshly allocated memory.

    Results of ``merge_convs`` may have unusual strides, with which torch silently is slower.
    """
    for name, value in (('weight', weight), ('bias', bias)):
        fresh = torch.empty(value.shape, dtype=dtype, device=value.device)
        state_dict[f'{prefix}conv.{name}'] = fresh.copy_(value)


def _double(values: Tensor) -> Tensor:
    values = values.detach()
    return (values.cpu() if values.device.type == 'mps' else values).double()  # MPS has no float64
