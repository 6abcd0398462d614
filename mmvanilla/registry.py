"""Registries of the scope ``mmvanilla``, children of mmengine's.

``type='mmvanilla.VanillaNet'`` is found from any OpenMMLab registry, because mmengine imports this
module when it meets the scope. Everything is registered in mmengine's root registries too: with
``custom_imports=dict(imports=['mmvanilla'])`` the plain names work, whatever the default scope.
"""

from typing import Callable

from mmengine import registry as root
from mmengine.registry import Registry

MODELS = Registry('model', parent=root.MODELS, locations=['mmvanilla.models'])
HOOKS = Registry('hook', parent=root.HOOKS, locations=['mmvanilla.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['mmvanilla.engine'],
)


def register(registry: Registry) -> Callable[[type], type]:
    """Class decorator: registers in ``registry`` and in mmengine's root registry above it."""

    def decorator(cls: type) -> type:
        registry.parent.register_module(module=cls)
        return registry.register_module(module=cls)

    return decorator
