"""Memory for time: what the backward pass needs is computed again instead of kept."""

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Callable, ContextManager, Dict, Iterator, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(
    function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module
) -> Tensor:
    """``function(x)``, of which only ``x`` is kept for the backward pass.

    The backward pass runs the function again, as far as it needs: not its last convolution. Nothing
    is recomputed outside training, nor by a compiler, which decides for itself what to recompute.

    Args:
        function: What to call; it draws no random numbers.
        x: Its argument.
        module: What the function is part of. When it runs again all is in the mode that it is in
            now, and the running statistics of norms stay.
    """
    if not (module.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return function(x)
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(_contexts, module),
    )


def recompute_on_cpu(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Tensor:
    """``recompute_in_backward`` where it was measured to pay: not on GPUs, where it was not."""
    return recompute_in_backward(function, x, module) if x.device.type == 'cpu' else function(x)


def _contexts(module: nn.Module) -> Tuple[ContextManager, ContextManager]:
    """What to run in the first time, and again."""
    return nullcontext(), _again({m: m.training for m in module.modules()})


@contextmanager
def _again(modes: Dict[nn.Module, bool]) -> Iterator[None]:
    """Modules in given modes, norms on copies of their statistics, which may move only once."""
    now = {m: m.training for m in modes}
    kept = {m: dict(m.named_buffers()) for m in modes if isinstance(m, _BatchNorm)}
    _set_modes(modes)
    for norm, buffers in kept.items():
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        _set_modes(now)
        for norm, buffers in kept.items():
            norm._buffers.update(buffers)


def _set_modes(modes: Dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
