"""Our models in mmpretrain's list, so that ``list_models`` and ``get_model`` know them.

mmpretrain is neither imported for it nor needed: where it is imported later, the list follows.
"""

import sys
import warnings
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Sequence


def find_root() -> Path:
    """The folder of configs, tools and model-index.yml: installed, or of a source tree."""
    installed = Path(__file__).parent / '.mim'
    return installed if (installed / 'model-index.yml').exists() else Path(__file__).parents[1]


@cache  # once, also when mmvanilla is reloaded
def register_models(module: ModuleType) -> None:
    """Adds our models to mmpretrain's list, once its module ``mmpretrain.apis.model`` is there."""
    root = find_root()
    index = root / 'model-index.yml'
    if index.exists():  # a bare copy of the package has none
        module.ModelHub.register_model_index(index, config_prefix=root)


def register_when_imported(name: str) -> None:
    """Calls ``register_models`` with the module ``name``: now, or when it will be imported."""
    if name in sys.modules:
        register_models(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name))


class _AfterImport(MetaPathFinder):
    """Finds one module as Python does, and has ``register_models`` called after its import."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Any = None
    ) -> Optional[ModuleSpec]:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            exec_module = spec.loader.exec_module

            def exec_and_register(module: ModuleType) -> None:
                exec_module(module)
                try:
                    register_models(module)
                except Exception as error:  # whatever it is, mmpretrain must stay importable
                    message = f'mmpretrain does not list the models of mmvanilla: {error}'
                    warnings.warn(message, stacklevel=2)

            spec.loader.exec_module = exec_and_register
        return spec
