"""Parameter-free shortcuts, for the ablation of Table 3 (paper section 4.1)."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError

# Where the shortcut is added, relative to the activation; the names are those of Table 3.
SHORTCUTS = ('before_act', 'after_act')


def check_shortcut(place: Optional[str]) -> None:
    """Raises UsageError unless it is None or one of ``SHORTCUTS``."""
    if place not in (None, *SHORTCUTS):
        raise UsageError(
            f'shortcut={place!r} is unknown: choose one of {", ".join(SHORTCUTS)}, or None.'
        )


class Shortcut(nn.Module):
    """Brings the input of a layer to the size of its output, without parameters.

    Args:
        in_channels: Channels of the layer's input.
        out_channels: Channels of its output. The added channels are zero.
        pool: Average pooling where the layer pools, ``nn.Identity()`` elsewhere.

    Raises:
        UsageError: if the layer has fewer channels than its input.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: nn.Module) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise UsageError(
                f'a shortcut without parameters cannot go from {in_channels} to {out_channels} '
                'channels: leave shortcut out, or use an arch whose channels never decrease.'
            )
        self.pool = pool
        self.extra_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.pool(x), (0, 0, 0, 0, 0, self.extra_channels))


class ShortcutBlock(nn.Module):
    """A ``VanillaBlock`` with a shortcut around it.

    Args:
        conv: The deep convolution.
        pool: The pooling, ``nn.Identity()`` for none.
        act: The series activation.
        shortcut: What is added.
        place: 'before_act' adds it to the input of the series activation, 'after_act' to its
            output. The paper shows neither in a figure.
    """

    def __init__(
        self, conv: nn.Module, pool: nn.Module, act: nn.Module, shortcut: Shortcut, place: str
    ) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.act = act
        self.shortcut = shortcut
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.pool(self.conv(x))
        return self.act(x + shortcut) if self.place == 'before_act' else self.act(x) + shortcut
