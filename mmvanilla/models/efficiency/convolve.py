"""Convolutions, computed in the ways that were measured to be the fastest on CPUs."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from ...compatibility import is_compiling


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns ``conv(x)``; on a CPU it is computed in two other ways.

    - A 1x1 convolution on channels_last maps is computed as the matrix product that it is, because
      torch's convolution takes up to four times as long for the gradients (docs/speed.md). Under a
      compiler it stays a convolution if its channels are powers of two, where packed weights pay
      off; the 3072 channels of '13-x1.5' took twice as long that way.
    - A depthwise convolution of maps in the usual layout is computed in channels_last in training,
      because the gradients take up to six times as long in the usual layout.

    Tracers always see a convolution.

    Args:
        conv: A convolution, or what has taken its place, such as a quantized one.
        x: Its input, (N, C_in, H, W).
    """
    if not (type(conv) is nn.Conv2d and may_bypass(conv, x)):
        return conv(x)
    if _is_product(conv) and x.is_contiguous(memory_format=torch.channels_last):
        if not (is_compiling() and _are_powers_of_two(conv.weight.shape[:2])):
            weight = conv.weight.flatten(1)
            x = F.linear(x.permute(0, 2, 3, 1), weight, conv.bias)  # (N, H, W, C_out)
            return x.permute(0, 3, 1, 2)
    elif conv.groups == conv.in_channels and x.requires_grad and x.is_contiguous():
        x = x.contiguous(memory_format=torch.channels_last)
        return conv(x).contiguous()
    return conv(x)


def may_bypass(module: nn.Module, x: Optional[Tensor]) -> bool:
    """Whether other code may compute what ``module(x)`` does: on a CPU, if nobody watches.

    Hooks, of users, sharded training and quantization, and tracers need every call of a module.
    """
    return (
        isinstance(x, Tensor)  # not the proxy of a tracer
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and not (hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks)
        and not any(map(_has_hooks, module.modules()))
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_product(conv: nn.Conv2d) -> bool:
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return geometry == ((1, 1), (1, 1), (0, 0), 1)


def _are_powers_of_two(numbers: Sequence[int]) -> bool:
    return all(number & (number - 1) == 0 for number in numbers)
