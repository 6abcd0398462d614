"""Walking through configs, and reading those in checkpoints."""

import ast
import copy
import inspect
import re
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, FrozenSet, Iterator, Mapping, Union

from mmengine.config import Config
from mmengine.registry import Registry

from ..errors import UsageError
from ..registry import MODELS

# The packages whose classes a config in a checkpoint may name.
SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'mmvanilla')


def nested_dicts(value: Any) -> Iterator[dict]:
    """Every dict inside nested dicts and lists, ``value`` itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from nested_dicts(item)


def deploy_config(cfg: Config) -> Config:
    """A copy of a config that builds this package's modules in deploy form, for fused weights."""
    cfg = copy.deepcopy(cfg)
    for part in nested_dicts(cfg.get('model')):
        name = getattr(part.get('type'), '__name__', str(part.get('type')))
        cls = MODELS.module_dict.get(name.split('.')[-1])
        if cls is not None and 'deploy' in inspect.signature(cls).parameters:
            part['deploy'] = True
    return cfg


def config_in_checkpoint(checkpoint: Mapping[str, Any], path: Union[str, Path]) -> Config:
    """The config that a checkpoint was trained with, as values that cannot make anything run.

    Args:
        checkpoint: The content of a file of mmengine.
        path: That file, for messages.

    Raises:
        UsageError: if there is none, if it is more than assignments of values, or if it names what
            is not in the registries of ``SCOPES``: mmengine would import and call it.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    if text is None:
        raise UsageError(f'checkpoint {path} holds no config: name one with --config.')
    try:
        tree = _DictCallsToDicts().visit(ast.parse(text))
        values = {line.targets[0].id: ast.literal_eval(line.value) for line in tree.body}
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError):
        raise UsageError(
            f'the config in checkpoint {path} is not plain values: name one with --config.'
        ) from None
    for name in ('tta_model', 'tta_pipeline'):  # which no inferencer reads
        values.pop(name, None)
    foreign = next(_foreign_names(values), None)
    if foreign is not None:
        raise UsageError(
            f'the config in checkpoint {path} names {foreign}, which is not of '
            f'{", ".join(SCOPES[:-1])} or {SCOPES[-1]}: name a config that you trust with --config.'
        )
    values.pop('custom_imports', None)  # packages of ours, which their scopes import
    return Config(values)


def _foreign_names(values: dict) -> Iterator[Any]:
    """What a config names that is not registered by the packages in ``SCOPES``."""
    imports = (values.get('custom_imports') or {}).get('imports') or []
    for module in [imports] if isinstance(imports, str) else imports:
        if module.split('.')[0] not in SCOPES:
            yield f'the import of {module}'
    default = values.get('default_scope') or 'mmengine'
    parts = list(nested_dicts(values))
    for scope in (default, *(part.get('_scope_') for part in parts)):
        if scope not in (None, *SCOPES):
            yield f'the scope {scope}'
    for part in parts:
        name = part.get('type')
        scope, dot, name_in_scope = str(name).rpartition('.')
        scopes = {scope} if dot else {default, part.get('_scope_') or default}
        if name is not None and not (
            scopes <= set(SCOPES)
            and any(name_in_scope in _registered_names(each) for each in scopes)
            # A registry that lacks a name looks for a module of it.
            and (dot or find_spec(name) is None)
        ):
            yield f'the type {name}'
    for text in _nested_strings(values.get('model')):
        if re.search(r'[()]|__', text):  # some packages evaluate settings
            yield f'{text!r}'


def _nested_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _nested_strings(item)


@cache
def _registered_names(scope: str) -> FrozenSet[str]:
    """All names in the registries of a package and of mmengine, and mmcv's operators."""
    names = set()
    for package in ('mmcv.cnn', 'mmcv.ops', 'mmcv.transforms'):  # they register in mmengine's
        with suppress(ImportError):
            names.update(getattr(import_module(package), '__all__', ()))
    for package in ('mmengine', scope):
        try:
            module = import_module(f'{package}.registry')
        except ImportError:  # not installed; mmcv has none
            continue
        for registry in vars(module).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                names.update(registry.module_dict)
    return frozenset(names)


class _DictCallsToDicts(ast.NodeTransformer):
    """dict({'a.b': 1}, c=2), as mmengine writes, into {'a.b': 1, 'c': 2}, as literal_eval reads."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        first = node.args[0] if node.args else ast.Dict(keys=[], values=[])
        if getattr(node.func, 'id', None) != 'dict' or not isinstance(first, ast.Dict):
            return node  # which literal_eval refuses
        keys = [keyword.arg and ast.Constant(keyword.arg) for keyword in node.keywords]
        values = [keyword.value for keyword in node.keywords]
        return ast.Dict(keys=first.keys + keys, values=first.values + values)
