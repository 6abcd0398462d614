"""Trading time for memory: the backward pass computes values again instead of keeping them."""

from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Callable, Dict, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...compatibility import is_compiling, is_transformed
from .convolve import is_usual


def recompute_in_backward(
    function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module
) -> Tensor:
    """Calls ``function(x)`` and keeps only ``x`` for the backward pass.

    The backward pass calls the function again, up to its last convolution, whose output it does not
    need. Nothing is recomputed outside training, or under a compiler, which decides for itself.

    Args:
        function: What to call.
        x: Its argument.
        module: The module that the function belongs to. When the function runs again, every part of
            the module has the mode that it has now, and running statistics do not change.
    """
    if not (recomputes(module) and isinstance(x, Tensor)):  # a tracer has a proxy
        return function(x)
    modes = {m: m.training for m in module.modules()}
    runs = count()

    def run(x: Tensor) -> Tensor:
        with _repeating(modes) if next(runs) else nullcontext():
            return function(x)

    draws = not all(map(is_usual, module.modules()))  # perhaps, such as dropout of a user
    return checkpoint(run, x, use_reentrant=False, preserve_rng_state=draws)


def recomputes(module: nn.Module) -> bool:
    """Whether ``recompute_in_backward`` recomputes for this module now."""
    training = module.training and torch.is_grad_enabled()
    return training and not is_compiling() and not is_transformed()


@contextmanager
def _repeating(modes: Dict[nn.Module, bool]) -> Iterator[None]:
    """Sets the modes of modules, and restores modes and running statistics afterwards."""
    before = {m: m.training for m in modes}
    norms = [m for m, training in modes.items() if training and isinstance(m, _BatchNorm)]
    statistics = {norm: dict(norm.named_buffers(recurse=False)) for norm in norms}
    for norm, buffers in statistics.items():  # not in place: other graphs may have saved them
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    _set_modes(modes)
    try:
        yield
    finally:
        _set_modes(before)
        for norm, buffers in statistics.items():
            norm._buffers.update(buffers)


def _set_modes(modes: Dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
