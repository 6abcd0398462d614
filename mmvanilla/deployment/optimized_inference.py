"""The fastest way that we know to run a network, in one call."""

import copy
import re
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from threading import Lock
from types import FunctionType
from typing import Any, Callable, Iterator, List, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..compatibility import HOOK_WITH_KWARGS, THREADS_SHARE_SETTINGS, require_compiler
from ..errors import UsageError
from ..models.folding.network import switch_to_deploy

# Modules that take and return only tensors; the rest of a detector chooses among boxes.
PARTS = ('backbone', 'neck', 'bbox_head', 'head')
# On a CPU, weights are constants, packed once for the kernels that use them; on a GPU, all kernels
# of a pass are launched as one graph.
COMPILE_OPTIONS = {'cpu': {'freezing': True}, 'cuda': {'triton.cudagraphs': True}}
# What 'auto' compares: an image of this size, and the largest difference, of the largest output.
CHECKED_SIZE, TOLERANCE = (224, 224), 0.05
_numbers = count()
_lock, _inside, _before = Lock(), [], []  # threads inside, and the setting before them


def optimize_for_inference(
    model: nn.Module,
    device: str = 'cpu',
    dtype: Union[torch.dtype, str] = torch.float32,
    compile: Optional[bool] = None,
) -> nn.Module:
    """A fused copy of a network, set up to run fast on a device; it logs what it chose.

    ``torch.compile`` compiles backbone, neck and dense head at the first image, and again at the
    first image of another size; each time takes from seconds to a minute. The rest is unchanged.

    Args:
        model: A backbone, classifier, detector or segmentor at λ = 1, in any form.
        device: Where it is to run, 'cpu' or 'cuda'.
        dtype: The precision inside backbone, neck and head, such as ``torch.bfloat16``; their
            inputs and outputs are float32. 'auto' takes bfloat16 if the processor computes in it,
            and if the outputs for a random image stay within 5% of the largest.
        compile: Whether to compile; by default only if a compiler works here.

    Returns:
        The network in eval mode, called as before. It cannot be trained, and its weights must not
        change once it has run; loading others raises UsageError.

    Raises:
        UsageError: if λ is not 1, or if torch is too old to compile.
    """
    kind = torch.device(device).type
    model = switch_to_deploy(model).requires_grad_(False).to(device)
    model = model.to(memory_format=torch.channels_last)
    parts = {name: part for name in PARTS if (part := getattr(model, name, None)) is not None}
    if dtype == 'auto':
        is_near = (
            has_bfloat16(kind) and _error_of_bfloat16(list(parts.values()) or [model]) < TOLERANCE
        )
        dtype = torch.bfloat16 if is_near else torch.float32
    if compile is None:
        compile = compiler_works(kind)
    for part in parts.values() or [model]:
        if dtype != torch.float32:
            _run_in(part, dtype)
        if compile:
            _compile(part, kind)
    for module in model.modules():
        module._register_load_state_dict_pre_hook(_refuse_weights)
    chosen = ['fused', 'channels_last', str(dtype).replace('torch.', '')]
    print_log(
        f'Optimized for {device}{" (" + ", ".join(parts) + ")" if parts else ""}: '
        f'{", ".join(chosen + ["compiled"] * compile)}.',
        'current',
    )
    return model


def has_bfloat16(device: str) -> bool:
    """Whether a kind of device computes in bfloat16, and does not only emulate it."""
    if device == 'cuda':
        return torch.cuda.is_bf16_supported()
    try:
        return re.search(r'\b\w*bf16\b', Path('/proc/cpuinfo').read_text()) is not None
    except OSError:  # not Linux
        return False


def _error_of_bfloat16(parts: List[nn.Module]) -> float:
    """The largest difference that it makes to the outputs of a chain of modules, of the largest."""
    channels = next(m.in_channels for m in parts[0].modules() if isinstance(m, nn.Conv2d))
    weights = next(parts[0].parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, channels, *CHECKED_SIZE, generator=generator).to(weights.device)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        values = images
        with torch.no_grad():
            for part in parts:
                part = copy.deepcopy(part)
                _run_in(part, dtype)
                values = part(values)
        tensors: List[Tensor] = []
        _map_tensors(lambda x, tensors=tensors: tensors.append(x), values)
        outputs.append(tensors)
    errors = [((x - y).abs().max() / x.abs().max()).item() for x, y in zip(*outputs)]
    return max(errors)


def _refuse_weights(*args: Any) -> None:
    raise UsageError(
        'an optimized network cannot load weights, which are constants in it: load them into the '
        'network before, and call optimize_for_inference again.'
    )


def _run_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Makes a module compute in another precision; its inputs and outputs stay float32."""
    module.to(dtype)
    module.register_forward_pre_hook(partial(_cast_inputs, dtype), **HOOK_WITH_KWARGS)
    module.register_forward_hook(_cast_outputs)


def _cast_inputs(dtype: torch.dtype, _: nn.Module, args: tuple, kwargs: Any = None) -> Any:
    args = _cast(args, dtype)
    return args if kwargs is None else (args, _cast(kwargs, dtype))


def _cast_outputs(_: nn.Module, __: tuple, outputs: Any) -> Any:
    return _cast(outputs, torch.float32)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return _map_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def _compile(module: nn.Module, device: str) -> None:
    """Does what ``module.compile()`` does, with constant weights.

    Whether weights are constants is a setting of the process, not one of the options; it takes
    effect only without gradients.
    """
    require_compiler()
    compiled = torch.compile(_caller(module), options=COMPILE_OPTIONS[device])
    freezing = COMPILE_OPTIONS[device].get('freezing', False)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad(), _constant_weights() if freezing else nullcontext():
            outputs = compiled(*args, **kwargs)
        # On a GPU, a graph writes to the same memory every time.
        return _map_tensors(torch.clone, outputs) if device == 'cuda' else outputs

    module._compiled_call_impl = call  # copies and pickles leave it out


@contextmanager
def _constant_weights() -> Iterator[None]:
    """Sets torch's ``freezing`` while a thread is inside, or another if they share the setting."""
    from torch._inductor import config  # slow to import

    if not THREADS_SHARE_SETTINGS:
        with config.patch(freezing=True):
            yield
        return
    with _lock:
        if not _inside:
            _before.append(config.freezing)
        config.freezing = True
        _inside.append(None)
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                config.freezing = _before.pop()


def _caller(module: nn.Module) -> Callable[..., Any]:
    """A function that calls a module, with a code object of its own.

    Dynamo remembers by code object which sizes of inputs vary. If networks shared one, a second
    network, at another size than the first, would take 1.4 times as long.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f'call_{next(_numbers)}')
    return FunctionType(code, call.__globals__, closure=call.__closure__)


def _map_tensors(function: Callable[[Tensor], Tensor], values: Any) -> Any:
    return apply_to(values, lambda x: isinstance(x, Tensor), function)


@lru_cache(maxsize=None)
def compiler_works(device: str) -> bool:
    """Whether ``torch.compile`` works on a device; it needs a C++ compiler, or Triton."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1)).to(device).requires_grad_(False)
    try:
        _compile(network, device)
        network(torch.zeros(1, 1, 2, 2, device=device))
    except Exception as error:  # compilers, and missing ones, raise many kinds of errors
        print_log(
            'torch.compile does not work here, so networks run without it: '
            f'{str(error).strip().splitlines()[0]}',
            'current',
        )
        return False
    return True
