"""Adds our models to mmpretrain's list, so that ``list_models`` and ``get_model`` know them.

mmpretrain may be absent, and takes seconds to import: the list is filled once it is imported.
"""

import sys
import warnings
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Sequence

HUB = 'mmpretrain.apis.model'  # the module with mmpretrain's list


def find_root() -> Path:
    """The folder with configs, tools and model-index.yml, of an installation or a source tree."""
    installed = Path(__file__).parent / '.mim'
    return installed if (installed / 'model-index.yml').exists() else Path(__file__).parents[1]


def register_models(module: ModuleType) -> None:
    """Adds our models to mmpretrain's list, given the module that it is in."""
    if vars(module).setdefault('_has_mmvanilla', False):  # a notebook may reload us
        return
    module._has_mmvanilla = True
    try:
        root = find_root()
        index = root / 'model-index.yml'
        if index.exists():  # a bare copy of the package has none
            module.ModelHub.register_model_index(index, config_prefix=root)
    except Exception as error:  # mmpretrain and mmvanilla must stay importable
        message = f'mmpretrain does not list the models of mmvanilla: {error}'
        warnings.warn(message, stacklevel=2)


def register_when_imported() -> None:
    """Calls ``register_models`` with mmpretrain's module, now or after it is imported."""
    if HUB in sys.modules:
        register_models(sys.modules[HUB])
    elif '_AfterImport' not in [type(finder).__name__ for finder in sys.meta_path]:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds mmpretrain's module as Python does, and calls ``register_models`` after its import."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Any = None
    ) -> Optional[ModuleSpec]:
        if fullname != HUB:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            exec_module = spec.loader.exec_module

            def exec_and_register(module: ModuleType) -> None:
                exec_module(module)
                register_models(module)

            spec.loader.exec_module = exec_and_register
        return spec
