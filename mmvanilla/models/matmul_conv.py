"""The 1x1 convolution as the matrix product that it is."""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MatmulConv2d(nn.Conv2d):
    """A convolution; where it is a plain matrix product, and on the CPU, it is computed as one.

    That is a 1x1 convolution of stride 1 on channels_last maps. Torch's convolutions take up to
    four times as long for the gradients (docs/speed.md). Tracers see a convolution, and
    compilers where their packed weights pay, at channels that are powers of two: compiled as
    convolutions, the 3072 channels of '13-x1.5' made it take twice as long.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        if (
            (torch.compiler.is_compiling() and _are_powers_of_two(weight.shape[:2]))
            or torch.jit.is_tracing()
            or self.kernel_size != (1, 1)
            or self.groups != 1
            or self.stride != (1, 1)
            or self.padding != (0, 0)
            or x.device.type != 'cpu'
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return super()._conv_forward(x, weight, bias)
        x = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)  # (N, H, W, C_out)
        return x.permute(0, 3, 1, 2)


def _are_powers_of_two(numbers: Sequence[int]) -> bool:
    return all(number & (number - 1) == 0 for number in numbers)
