"""Weights that no network can have."""

import math
from typing import Any, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from ..errors import UsageError

# The ends of the names of what is finite in every network that works.
NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')


def check_numbers(weights: Any, what: str) -> None:
    """Raises UsageError naming the first weight that no network can have, if there is one.

    Args:
        weights: A state dict. Anything in it but plain tensors is ignored.
        what: Where the weights are from.
    """
    fault = find_fault(weights)
    if fault is not None:
        raise UsageError(
            f'{what} holds {fault}: the run that wrote it diverged, or it is damaged; take an '
            'earlier one.'
        )


def find_fault(weights: Any) -> Optional[str]:
    """The first weight that no network can have, in words; None if there is none.

    That is NaN, an infinite weight or statistic, or a negative variance. Other buffers, such as
    masks, may be infinite; extra states, such as λ, are checked by their modules.
    """
    for name, value in weights.items() if isinstance(weights, Mapping) else ():
        plain = type(value) in (Tensor, nn.Parameter) and not value.is_meta
        if plain and value.is_floating_point() and not str(name).endswith('_extra_state'):
            found = _fault(str(name), value)
            if found:
                return f'{found} in {name}'
    return None


def _fault(name: str, value: Tensor) -> str:
    low, high = _range_of(value)
    if low != low:
        return 'NaN'
    if name.endswith(NUMBERS) and max(-low, high) == math.inf:
        return 'an infinite number'
    return 'a negative variance' if name.endswith('running_var') and low < 0 else ''


def _range_of(value: Tensor) -> Tuple[float, float]:
    """The least and the greatest number of a tensor; both NaN if one is."""
    if not value.numel() or value.layout != torch.strided:
        return 0.0, 0.0
    span = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride()))
    if span < value.numel():  # expanded, maybe to more numbers than anybody can look at
        value = value.detach().as_strided((span,), (1,))
    if value.dtype not in (torch.float32, torch.float64):
        value = value.float()
    low, high = value.detach().aminmax()
    return low.item(), high.item()
