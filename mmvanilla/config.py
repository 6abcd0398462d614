"""Reading configs: their parts, the classes that they name, and their packages."""

import copy
import inspect
import sys
from contextlib import suppress
from itertools import accumulate
from typing import Any, Callable, Dict, Iterator, Optional

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import Registry

from .registry import MODELS

# Packages whose registries find plain names.
PACKAGES = ('mmdet', 'mmpretrain', 'mmseg')


def nested_dicts(value: Any) -> Iterator[dict]:
    """Every dict inside nested dicts and lists, including ``value`` itself."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from nested_dicts(item)


def class_of(
    part: dict, scope: Optional[str] = None, registry: Registry = MODELS.root
) -> Optional[Callable]:
    """The class or function that the ``type`` of a config's part names; None if there is none.

    Args:
        part: A dict whose ``type`` is text, with a scope or without, or a class, as in configs in
            pure Python.
        scope: The package for names without a scope.
        registry: mmengine's registry of what it names.
    """
    kind = part.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(part.get('_scope_', scope)) as own:
        try:
            return own.get(kind)
        except RuntimeError:  # older versions of mmengine return None
            return None


def is_a(part: dict, cls: type, scope: Optional[str] = None) -> bool:
    """Whether a part of a model's config names a class or a subclass of it."""
    return cls in getattr(class_of(part, scope), '__mro__', ())


def scope_of(cfg: Config) -> str:
    """The package that a config is for: its ``default_scope``, or else the one of its model."""
    scope = cfg.get('default_scope')
    if scope is None:  # as in configs in pure Python
        bases = getattr(class_of(cfg.get('model') or {}), '__mro__', ())
        packages = (each.__module__.split('.')[0] for each in bases)
        scope = next((package for package in packages if package in PACKAGES), 'mmengine')
    return scope


def deploy_config(cfg: Config) -> Config:
    """A copy of a config that builds this package's modules in deploy form, for fused weights.

    Its types are text, as ``name_types`` makes them.
    """
    cfg = copy.deepcopy(cfg)
    scope = scope_of(cfg)
    for part in nested_dicts(cfg.get('model')):
        made_by = class_of(part, scope)
        ours = set(getattr(made_by, '__mro__', [made_by])) & set(MODELS.module_dict.values())
        takes_it = any('deploy' in inspect.signature(each).parameters for each in ours)
        with suppress(TypeError):  # a user's subclass may not take it
            if takes_it and inspect.signature(made_by).bind_partial(deploy=True):
                part['deploy'] = True
    name_types(cfg)
    return cfg


def name_types(cfg: Config) -> None:
    """Replaces the types of a config in pure Python, in place, by the names of a usual config.

    mmengine writes paths instead, of which it cannot read all (in mmdet, ``losses.smooth_l1_loss``
    is a module and a function), and inferencers look for names. Classes without a name get the
    shortest path that leads to them; those that cannot be imported stay.
    """
    parts = [part for part in nested_dicts(list(cfg.values())) if callable(part.get('type'))]
    names = _registered_names(scope_of(cfg)) if parts else {}
    for part in parts:
        kind = part['type']
        name = getattr(kind, '__name__', '')
        modules = accumulate(getattr(kind, '__module__', '').split('.'), '{}.{}'.format)
        paths = (f'{m}.{name}' for m in modules if getattr(sys.modules.get(m), name, None) is kind)
        part['type'] = names.get(kind) or next(paths, kind)


def _registered_names(scope: str) -> Dict[Callable, str]:
    """The names of everything that is registered, as a config with any default scope needs them."""
    names: Dict[Callable, str] = {}
    for registry in vars(root).values():
        if isinstance(registry, Registry):
            own = registry.children.get(scope)
            for name, made in registry.module_dict.items():
                is_basic = made.__module__.split('.')[0] in ('mmengine', 'mmcv', 'torch')
                if is_basic and (own is None or own.module_dict.get(name, made) is made):
                    names.setdefault(made, name)
            for child in registry.children.values():
                for name, made in child.module_dict.items():
                    if made.__module__.split('.')[0] == child.scope:  # not in a user's module
                        names.setdefault(made, f'{child.scope}.{name}')
    return names
