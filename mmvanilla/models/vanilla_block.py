"""The layers that VanillaNet is built of."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .deep_conv import DeepConv
from .recompute import recompute_on_cpu
from .series_activation import SeriesActivation

# By its place in a layer, as the paper's Table 3 has them.
SHORTCUTS = ('before_act', 'after_act')


class VanillaBlock(nn.Module):
    """Deep convolution, pooling, series activation: the one layer that VanillaNet is built of.

    In training on a CPU only the input and what the convolutions give is kept for the backward
    pass: the norms between them, the pooling and the ReLU are computed again. Hooks on ``conv`` and
    ``act`` are not called in training, those on the block are.

    Args:
        conv: The deep convolution.
        pool: The pooling, ``nn.Identity()`` for none.
        act: The series activation.
    """

    def __init__(self, conv: DeepConv, pool: nn.Module, act: SeriesActivation) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.act.norm is None:
            return self.act(self.pool(self.conv(x)))
        x = self.conv.convolve(x)
        x = recompute_on_cpu(lambda x: self.act.activate(self.pool(self.conv.norm(x))), x, self)
        return self.act.norm(x)


class Shortcut(nn.Module):
    """The input of a layer, brought to the size of its output without parameters (section 4.1).

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of its output; those added are zero.
        pool: Average pooling where the layer pools, ``nn.Identity()`` elsewhere.

    Raises:
        UsageError: if the layer has fewer channels than its input.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: nn.Module) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise UsageError(
                f'a shortcut without parameters cannot go from {in_channels} to {out_channels} '
                'channels: leave shortcut out, or give an arch whose channels do not fall.'
            )
        self.pool = pool
        self.extra_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.extra_channels))


class ShortcutBlock(VanillaBlock):
    """A VanillaBlock with a parameter-free shortcut around it (Table 3).

    Args:
        conv: The deep convolution.
        pool: The pooling, ``nn.Identity()`` for none.
        act: The series activation.
        shortcut: What is added.
        place: 'before_act', to what goes into the series activation; 'after_act', to what comes out
            of it. The paper does not draw either.
    """

    def __init__(
        self,
        conv: DeepConv,
        pool: nn.Module,
        act: SeriesActivation,
        shortcut: Shortcut,
        place: str,
    ) -> None:
        super().__init__(conv, pool, act)
        self.shortcut = shortcut
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.pool(self.conv(x))
        return self.act(x + shortcut) if self.place == 'before_act' else self.act(x) + shortcut
