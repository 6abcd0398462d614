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
        module: What the function is part of. When it runs again its norms are in the mode that they
            are in now, and their running statistics stay.
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


def _contexts(module: nn.Module) -> Tuple[ContextManager, ContextManager]:
    """What to run in the first time, and again."""
    modes = {m: m.training for m in module.modules() if isinstance(m, _BatchNorm)}
    return nullcontext(), _again(modes)


@contextmanager
def _again(modes: Dict[_BatchNorm, bool]) -> Iterator[None]:
    """Norms in given modes, on copies of their running statistics, which may move only once."""
    kept = [(norm, norm.training, dict(norm.named_buffers())) for norm in modes]
    for norm, _, buffers in kept:
        norm.training = modes[norm]
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, mode, buffers in kept:
            norm.training = mode
            norm._buffers.update(buffers)
