"""Other ways to compute a ``forward``, which take less time or memory on CPUs.

Each is a decorator of a ``forward`` method. On GPUs the method itself runs: nothing was measured
there. So it does where hooks or tracers need every submodule to be called as a module.
"""

from functools import wraps
from typing import Callable, Tuple

import torch
from torch import Tensor, nn

from ...compatibility import is_transformed
from ..norm import normalize
from .convolve import convolve, may_bypass
from .recompute import recompute_in_backward, recomputes

Forward = Callable[[nn.Module, Tensor], Tensor]


def channels_last_on_cpu(forward: Callable[..., Tuple[Tensor, ...]]) -> Callable:
    """Runs a backbone in the channels_last layout on a CPU; images and features keep the usual one.

    A training step of a detector is 1.3 times faster this way. Heads that call ``view`` need
    features in the usual layout.
    """

    @wraps(forward)
    def wrapper(module: nn.Module, x: Tensor) -> Tuple[Tensor, ...]:
        usual = isinstance(x, Tensor) and x.dim() == 4 and not is_transformed()
        if not usual or x.device.type != 'cpu' or not x.is_contiguous():
            return forward(module, x)
        features = forward(module, x.contiguous(memory_format=torch.channels_last))
        return tuple(each.contiguous() for each in features)

    del wrapper.__annotations__['return']  # fx would copy it, and TorchScript cannot read it
    return wrapper


def in_training_on_cpu(lean: Forward) -> Callable[[Forward], Forward]:
    """Replaces a ``forward`` with ``lean`` in training on a CPU."""

    def decorate(forward: Forward) -> Forward:
        @wraps(forward)
        def wrapper(module: nn.Module, x: Tensor) -> Tensor:
            trains_on_cpu = recomputes(module) and may_bypass(module, x)
            return (lean if trains_on_cpu else forward)(module, x)

        return wrapper

    return decorate


def lean_deep_conv(conv: nn.Module, x: Tensor) -> Tensor:
    """``DeepConv.forward``, keeping only the outputs of convolutions for the backward pass."""
    return normalize(conv.norm, _lean_convolutions(conv, x))


def lean_block(block: nn.Module, x: Tensor) -> Tensor:
    """``VanillaBlock.forward``, keeping only its input and the outputs of convolutions.

    The backward pass computes norms, pooling and ReLU again.
    """
    conv, pool, act = block.conv, block.pool, block.act
    ours = hasattr(conv, 'is_deep') and hasattr(act, 'activate')
    if not ours or isinstance(act.norm, nn.Identity):  # deploy form: nothing to recompute
        return act(pool(conv(x)))
    x = _lean_convolutions(conv, x)
    act.check_training()
    x = recompute_in_backward(lambda x: act.activate(pool(normalize(conv.norm, x))), x, block)
    return normalize(act.norm, x)


def _lean_convolutions(conv: nn.Module, x: Tensor) -> Tensor:
    """The convolutions of a ``DeepConv``, without its last norm."""
    conv.check_training()
    if not conv.is_deep:
        return convolve(conv.conv, x)
    x = convolve(conv.conv1, x)
    return recompute_in_backward(
        lambda x: convolve(conv.conv2, conv.act(normalize(conv.norm1, x))), x, conv
    )
