"""Convolutions, computed in the ways that were measured to be the fastest on CPUs."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compatibility import is_compiling


class Conv2d(nn.Conv2d):
    """torch's convolution, computed in two other ways on a CPU.

    - A 1x1 convolution on channels_last maps is computed as the matrix product that it is, because
      torch's convolution takes up to four times as long for the gradients (docs/speed.md). Under a
      compiler it stays a convolution if its channels are powers of two, where packed weights pay
      off; the 3072 channels of '13-x1.5' took twice as long that way.
    - A depthwise convolution of maps in the usual layout is computed in channels_last in training,
      because the gradients take up to six times as long in the usual layout.

    Tracers always see a convolution.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        product, depthwise = self._is_product, self.groups == self.in_channels
        if (product or depthwise) and x.device.type == 'cpu' and not torch.jit.is_tracing():
            if product and x.is_contiguous(memory_format=torch.channels_last):
                if not (is_compiling() and _are_powers_of_two(weight.shape[:2])):
                    x = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)  # (N, H, W, C_out)
                    return x.permute(0, 3, 1, 2)
            elif depthwise and x.requires_grad and x.is_contiguous():
                x = x.contiguous(memory_format=torch.channels_last)
                return super()._conv_forward(x, weight, bias).contiguous()
        return super()._conv_forward(x, weight, bias)

    @property
    def _is_product(self) -> bool:
        geometry = (self.kernel_size, self.stride, self.padding, self.groups)
        return geometry == ((1, 1), (1, 1), (0, 0), 1)


def _are_powers_of_two(numbers: Sequence[int]) -> bool:
    return all(number & (number - 1) == 0 for number in numbers)
