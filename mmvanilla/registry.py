"""Registries of the scope ``mmvanilla``, children of mmengine's.

``type='mmvanilla.VanillaNet'`` is found from any OpenMMLab registry, because mmengine imports this
module when it meets the scope. Everything is registered in mmengine's root registries too: with
``custom_imports=dict(imports=['mmvanilla'])`` the plain names work, whatever the default scope.
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
    """Decorator of a class or function: registers it in ``registry`` and in mmengine's above."""

    def decorator(cls: type) -> type:
        for each in (registry.parent, registry):
            each.register_module(module=cls, force=_is_lazy(each.module_dict.get(cls.__name__)))
        return cls

    return decorator


def register_lazily(registry: Registry, name: str, module: str) -> None:
    """Registers a class whose module imports a package that may be absent, or is slow to import.

    The module is imported when the class is first built; its own ``register`` then takes the place.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    build.is_lazy = True
    for each in (registry.parent, registry):
        each.register_module(name=name, module=build)


def _is_lazy(entry: Any) -> bool:
    return getattr(entry, 'is_lazy', False)
