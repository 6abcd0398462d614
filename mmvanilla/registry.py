"""Registries of the scope ``mmvanilla``, children of mmengine's.

Every OpenMMLab registry finds ``type='mmvanilla.VanillaNet'``, because mmengine imports this module
when it first sees the scope. Everything is in mmengine's root registries too: with
``custom_imports=dict(imports=['mmvanilla'])``, names without the scope work as well.
"""

from importlib import import_module
from typing import Any, Callable

from mmengine import registry as root
from mmengine.registry import Registry


def _child(parent: Registry, location: str) -> Registry:
    """Our child of a registry; a notebook that reloads this module already has it."""
    known = parent.children.get('mmvanilla')
    return known or Registry(parent.name, scope='mmvanilla', parent=parent, locations=[location])


MODELS = _child(root.MODELS, 'mmvanilla.models')
HOOKS = _child(root.HOOKS, 'mmvanilla.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'mmvanilla.engine')
METRICS = _child(root.METRICS, 'mmvanilla.evaluation')


def register(registry: Registry) -> Callable[[type], type]:
    """Decorates a class or function: registers it in ``registry`` and in its parent."""

    def decorator(cls: type) -> type:
        _add(registry, cls.__name__, cls)
        return cls

    return decorator


def register_lazily(registry: Registry, name: str, module: str) -> None:
    """Registers a class whose module imports a package that may be absent, or is slow to import.

    The module is imported when the class is first built, and registers the class itself.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    _add(registry, name, build)


def _add(registry: Registry, name: str, made: Callable) -> None:
    """Registers in a registry and its parent; only what is ours is replaced there.

    That is a class after its lazy stand-in, and anything in a notebook that reloads modules.
    """
    for each in (registry.parent, registry):
        known = getattr(each.module_dict.get(name), '__module__', '')
        each.register_module(name=name, module=made, force=known.split('.')[0] == 'mmvanilla')
