"""Registries of the scope ``mmvanilla``, children of mmengine's.

Every OpenMMLab registry finds ``type='mmvanilla.VanillaNet'``, because mmengine imports this module
when it first sees the scope. Everything is in mmengine's root registries too: with
``custom_imports=dict(imports=['mmvanilla'])``, names without the scope work as well.
"""

from importlib import import_module
from typing import Any, Callable

from mmengine import registry as root
from mmengine.registry import Registry

MODELS = Registry('model', parent=root.MODELS, locations=['mmvanilla.models'])
HOOKS = Registry('hook', parent=root.HOOKS, locations=['mmvanilla.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['mmvanilla.engine'],
)
METRICS = Registry('metric', parent=root.METRICS, locations=['mmvanilla.evaluation'])


def register(registry: Registry) -> Callable[[type], type]:
    """Decorates a class or function: registers it in ``registry`` and in its parent."""

    def decorator(cls: type) -> type:
        for each in (registry.parent, registry):
            lazy = getattr(each.module_dict.get(cls.__name__), 'is_lazy', False)
            each.register_module(module=cls, force=lazy)
        return cls

    return decorator


def register_lazily(registry: Registry, name: str, module: str) -> None:
    """Registers a class whose module imports a package that may be absent, or is slow to import.

    The module is imported when the class is first built, and registers the class itself.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    build.is_lazy = True
    for each in (registry.parent, registry):
        each.register_module(name=name, module=build)
