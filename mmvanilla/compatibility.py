"""What versions of torch and mmengine do differently, each with the version that ends it.

All other code reads as if there were one version.
"""

from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict

import torch

from .errors import UsageError
from .supported_versions import installed_version


def _find_is_compiling() -> Callable[[], bool]:
    for module in (getattr(torch, 'compiler', None), torch._utils):
        if hasattr(module, 'is_compiling'):
            return module.is_compiling
    return lambda: False


# torch 2.3 has torch.compiler.is_compiling; versions before 2.1 cannot tell, or do not compile.
is_compiling = _find_is_compiling()


def require_compiler() -> None:
    """Raises UsageError before torch 2.1, whose modules can be compiled in place."""
    if not hasattr(torch.nn.Module, 'compile'):
        raise UsageError(
            f'compiling needs torch >= 2.1, not {torch.__version__}: set compile=False.'
        )


def meta_device() -> ContextManager:
    """A context in which networks get shapes but no values; before torch 2.0 they get values."""
    return torch.device('meta') if hasattr(torch, 'compile') else nullcontext()


def add_to_torch_load(stand_ins: Dict[str, Any]) -> None:
    """Makes ``torch.load(weights_only=True)`` build these in place of the classes that they name.

    Before torch 2.6 it took no names, and was not the default.
    """
    if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 6):
        torch.serialization.add_safe_globals([(each, name) for name, each in stand_ins.items()])


def let_configs_find_the_fork() -> None:
    """Makes ``mmseg::`` bases resolve with onedl-mmsegmentation.

    onedl-mmengine looks for a distribution called mmsegmentation, which the fork is not.
    """
    if installed_version('onedl-mmengine'):
        from mmengine.config.utils import MODULE2PACKAGE

        MODULE2PACKAGE['mmseg'] = 'mmseg'
