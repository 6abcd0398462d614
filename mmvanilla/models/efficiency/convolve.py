"""Convolutions, computed in the ways that were measured to be the fastest on CPUs."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.modules.batchnorm import _BatchNorm

from ...compatibility import is_compiling, is_transformed

HOOKS = ('forward_hooks', 'forward_pre_hooks', 'backward_hooks', 'backward_pre_hooks')
LAYERS = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.ModuleList)


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

    Hooks (of users, sharded training, quantizers), tracers and transforms need every call of a
    module; so do modules of other kinds than ours, whose calls may do anything.
    """
    return (
        isinstance(x, Tensor)  # not the proxy of a tracer
        and x.device.type == 'cpu'
        and not torch.jit.is_tracing()
        and not is_transformed()
        and not any(getattr(hooks_of_all, f'_global_{kind}', None) for kind in HOOKS)
        and all(map(is_usual, module.modules()))
        and not any(getattr(m, f'_{kind}', None) for m in module.modules() for kind in HOOKS)
    )


def is_usual(module: nn.Module) -> bool:
    """Whether a module is of ours or of the layers in them, which draw no random numbers."""
    kind = type(module)
    known = kind in LAYERS or kind.__module__.startswith('mmvanilla.models.')
    return (known or isinstance(module, _BatchNorm)) and 'forward' not in vars(module)


def _is_product(conv: nn.Conv2d) -> bool:
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return geometry == ((1, 1), (1, 1), (0, 0), 1)


def _are_powers_of_two(numbers: Sequence[int]) -> bool:
    return all(number & (number - 1) == 0 for number in numbers)
