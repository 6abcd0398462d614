"""What older torch and mmengine lack; all other code reads as if there were only one version."""

from contextlib import nullcontext
from functools import partial
from typing import Any, ContextManager, Dict
from unittest.mock import patch

import mmengine
import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from packaging.version import Version
from torch import Tensor, nn
from torch.autograd import forward_ad

from .errors import UsageError
from .supported_versions import installed_version


def _torch_before(version: str) -> bool:
    return Version(Version(torch.__version__).base_version) < Version(version)


if _torch_before('2.1'):  # nothing can tell
    is_compiling = lambda: False  # noqa: E731
elif _torch_before('2.3'):
    is_compiling = torch._utils.is_compiling
else:
    is_compiling = torch.compiler.is_compiling


def is_transformed() -> bool:
    """Whether a function transform of torch is at work: ``torch.func``, forward-mode gradients.

    They support neither saved-tensor hooks, by which values are recomputed, nor memory formats.
    """
    peek = getattr(getattr(torch._C, '_functorch', None), 'peek_interpreter_stack', lambda: None)
    return peek() is not None or forward_ad._current_level >= 0


def require_compiler() -> None:
    """Raises UsageError before torch 2.1, whose networks can be compiled in place."""
    if _torch_before('2.1'):
        raise UsageError(f'torch {torch.__version__} cannot compile it; torch >= 2.1 can.')


def meta_device() -> ContextManager:
    """A context in which networks get shapes but no values; before torch 2.0 they get values."""
    return nullcontext() if _torch_before('2.0') else torch.device('meta')


def add_to_torch_load(stand_ins: Dict[str, Any]) -> None:
    """Lets ``torch.load`` build these for the names, which only mmengine on torch 2.6 needs."""
    if not (_torch_before('2.6') or installed_version('onedl-mmengine')):  # the fork adds its own
        torch.serialization.add_safe_globals([(each, name) for name, each in stand_ins.items()])


THREADS_SHARE_SETTINGS = _torch_before('2.13')  # of the compiler
# Hooks see keyword arguments only since torch 2.0.
HOOK_WITH_KWARGS = {} if _torch_before('2.0') else {'with_kwargs': True}


def onnx_by_tracing() -> ContextManager:
    """A context in which ``torch.onnx.export`` traces, which it does not by itself since 2.9."""
    if _torch_before('2.5'):
        return nullcontext()
    return patch('torch.onnx.export', partial(torch.onnx.export, dynamo=False))


def check_program_export() -> None:
    """Raises UsageError before torch 2.6, whose ``torch.export`` had other rules for sizes."""
    if _torch_before('2.6'):
        raise UsageError(f'torch {torch.__version__} cannot export programs; torch >= 2.6 can.')


def export_program(network: nn.Module, images: Tensor, fixed_size: bool) -> Any:
    """``torch.export`` of a network, for images (N, C, H, W) of any number and size, or of one."""
    sizes = None
    if not fixed_size:
        sizes = ({i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)},)
        images = torch.cat([images, images])  # a size of 1 would become a constant
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=sizes)


class _SyncBatchNorm(nn.SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        alone = x.device.type == 'cpu' and not (self.training and is_distributed())
        return (nn.BatchNorm2d if alone else nn.SyncBatchNorm).forward(self, x)


SyncBatchNorm = _SyncBatchNorm if _torch_before('2.1') else nn.SyncBatchNorm  # before: only GPUs


class AdvanceDataHook(Hook):
    """Before mmengine 0.10.3, runs by iterations began with the first data when resumed."""

    def before_train_epoch(self, runner: Runner) -> None:
        repeats = Version(mmengine.__version__) < Version('0.10.3')
        if repeats and isinstance(runner.train_loop, IterBasedTrainLoop):
            for _ in range(runner.iter):
                next(runner.train_loop.dataloader_iterator)


if installed_version('onedl-mmengine'):  # looks for mmsegmentation, which the fork is not
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE['mmseg'] = 'mmseg'
