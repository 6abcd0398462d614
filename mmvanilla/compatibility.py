"""What versions of torch and mmengine do differently, each with the version that ends it.

All other code reads as if there were only one version.
"""

from contextlib import nullcontext
from typing import Any, ContextManager, Dict

import mmengine
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UsageError
from .supported_versions import installed_version


def _torch_before(version: str) -> bool:
    return Version(torch.__version__) < Version(version)


def is_compiling() -> bool:
    """Whether a compiler traces the network now; before torch 2.1 none can."""
    return False


if not _torch_before('2.3'):
    is_compiling = torch.compiler.is_compiling
elif not _torch_before('2.1'):
    is_compiling = torch._utils.is_compiling


def require_compiler() -> None:
    """Raises UsageError before torch 2.1, whose networks can be compiled in place."""
    if _torch_before('2.1'):
        version = torch.__version__
        raise UsageError(f'compiling needs torch >= 2.1, not {version}: set compile=False.')


def meta_device() -> ContextManager:
    """A context in which networks get shapes but no values; before torch 2.0 they get values."""
    return nullcontext() if _torch_before('2.0') else torch.device('meta')


def add_to_torch_load(stand_ins: Dict[str, Any]) -> None:
    """Makes ``torch.load(weights_only=True)`` build these in place of the classes that they name.

    Before torch 2.6 it could not, and was not the default.
    """
    if not _torch_before('2.6'):
        torch.serialization.add_safe_globals([(each, name) for name, each in stand_ins.items()])


# Before torch 2.5 there was only one exporter.
ONNX_EXPORTER = {} if _torch_before('2.5') else {'dynamo': False}


class SyncBatchNorm(nn.SyncBatchNorm):
    """Computes an ordinary batch norm on a CPU, where torch's raised an error before torch 2.1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.is_cuda else _BatchNorm.forward(self, x)


if not _torch_before('2.1'):
    SyncBatchNorm = nn.SyncBatchNorm


class _AdvanceDataHook(Hook):
    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            for _ in range(runner.iter):
                next(runner.train_loop.dataloader_iterator)


def advance_data(runner: Runner) -> None:
    """Makes a resumed run by iterations go on with the data that come next.

    Before mmengine 0.10.3, its loop began with the first data again.
    """
    if Version(mmengine.__version__) < Version('0.10.3'):
        runner.register_hook(_AdvanceDataHook())


def let_configs_find_the_fork() -> None:
    """Makes ``mmseg::`` bases resolve with onedl-mmsegmentation.

    onedl-mmengine looks for a distribution called mmsegmentation, which the fork is not.
    """
    if installed_version('onedl-mmengine'):
        from mmengine.config.utils import MODULE2PACKAGE

        MODULE2PACKAGE['mmseg'] = 'mmseg'
