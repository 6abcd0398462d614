"""Reading the config inside a checkpoint without trusting it."""

import ast
import copy
import os
import re
import sys
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Union

from mmengine.config import Config
from mmengine.registry import Registry

from ..config import nested_dicts
from ..errors import UsageError

# A config in a checkpoint may name: these packages;
SCOPES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'mmvanilla')
# layers in these modules, since those layers read no files;
_ROOMS = (
    *('torch.', 'mmengine.', 'mmcv.', 'mmvanilla.', 'mmdet.models.', 'mmseg.models.'),
    *(f'mmpretrain.models.{room}' for room in ('backbones', 'necks', 'heads', 'losses', 'classif')),
)
# these transforms of test pipelines;
TRANSFORMS = (
    *('LoadImageFromFile', 'Resize', 'FixScaleResize', 'FixShapeResize', 'ResizeEdge', 'Pad'),
    *('CenterCrop', 'Normalize', 'LoadAnnotations', 'PackDetInputs', 'PackInputs', 'PackSegInputs'),
)
# and words, but no files, addresses or expressions: dots only in numbers ('13-x1.5').
_WORD = re.compile(r'([A-Za-z0-9_+-]|(?<=\d)\.(?=\d)){0,64}')
# Some layers read a file, or a model from a hub, by a word: not for these settings, nor if there is
# such a file.
_NAMES_FILES = re.compile(r'path|file|ckpt|checkpoint|remote|config|model_name|^name$|class_weight')
FORMS = {'deploy', 'merged'}  # settings that do not change what a network computes
_TOO_DEEP = (MemoryError, RecursionError)
_TOO_LONG = 200_000  # characters; Python 3.8 dies of longer expressions


def config_in_checkpoint(checkpoint: Mapping[str, Any], path: Union[str, Path]) -> Config:
    """The model and the test pipeline that a checkpoint was trained with, as harmless values.

    mmengine imports what a config names, and classes of its packages read files, unpickle them and
    evaluate expressions. So the text is not executed; layers must be registered by the packages in
    ``SCOPES``, transforms must be in ``TRANSFORMS``, and settings must be numbers or words that are
    not file names, addresses, expressions or modules. The rest of the config is left out.

    Args:
        checkpoint: The contents of a checkpoint of mmengine.
        path: Its path, for messages.

    Raises:
        UsageError: if there is no config, if it lacks a test pipeline, or if it names other things.
    """
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if not isinstance(text, str) or len(text) > _TOO_LONG:
        raise UsageError(f'checkpoint {path} holds no config: give one with --config.')
    try:
        tree = _DictCallsToDicts().visit(ast.parse(text))
        values = {line.targets[0].id: ast.literal_eval(line.value) for line in tree.body}
        model = values['model']
        package = model['type'].split('.')[0]
        scope = values.get('default_scope') or (package if package in SCOPES else 'mmengine')
        if 'train_cfg' in model:  # which some detectors want to be there
            model['train_cfg'] = None
        preprocessor = values.get('data_preprocessor')
        dataset = (values.get('test_dataloader') or {}).get('dataset', {})
        pipeline = list(copy.deepcopy(dataset.get('pipeline', [])))
        for part in nested_dicts([model, preprocessor, pipeline]):
            for name in ('init_cfg', 'pretrained', 'backend_args', 'file_client_args'):
                part.pop(name, None)  # the weights are in the file, the images are local
        for part in nested_dicts([model, preprocessor]):
            _name_class(part, _registered_layers)
        for part in nested_dicts(pipeline):
            _name_class(part, _registered_transforms)
        foreign = next(_foreign_names([model, preprocessor], scope, pipeline), None)
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError, *_TOO_DEEP):
        raise UsageError(
            f'the config in checkpoint {path} is not a model in plain values: give one with '
            '--config.'
        ) from None
    if foreign is not None:
        raise UsageError(
            f'the config in checkpoint {path} has {ascii(foreign)[:100]}, which is allowed only in '
            'a config that you trust: give one with --config.'
        )
    if not pipeline:
        raise UsageError(
            f'the config in checkpoint {path} has no test pipeline: give one with --config.'
        )
    kept = dict(
        default_scope=scope,
        model=model,
        data_preprocessor=preprocessor,
        test_dataloader=dict(dataset=dict(pipeline=pipeline)),
    )
    return Config({name: value for name, value in kept.items() if value is not None})


def check_same_model(text: str, cfg: Config, path: Union[str, Path]) -> None:
    """Raises UsageError if a config's model has other settings than the one in an exported file.

    Configs that ``config_in_checkpoint`` does not read are not compared.
    """
    try:
        inside, given = (
            config_in_checkpoint({'meta': {'cfg': each}}, path)._cfg_dict.to_dict()
            for each in (text, cfg.pretty_text)
        )
    except UsageError:
        return
    for part in ('model', 'data_preprocessor'):
        place = _first_difference(inside.get(part), given.get(part), part)
        if place is not None:
            raise UsageError(
                f'{path} was exported with other settings ({place} differs), and they are fixed in '
                'it: give the config and options that it was exported with.'
            )


def _first_difference(one: Any, other: Any, place: str) -> Optional[str]:
    """The first place where nested settings differ; None if there is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other} - FORMS, key=lambda name: (name != 'type', name)):
            found = _first_difference(one.get(name), other.get(name), f'{place}.{name}')
            if found is not None:
                return found
        return None
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        one, other = list(one), list(other)
    return None if one == other else place


def _foreign_names(model: Any, scope: Any, pipeline: Any) -> Iterator[Any]:
    """Everything in a model, a default scope and a pipeline that is not allowed."""
    if scope not in SCOPES:
        yield scope
        return
    parts = list(nested_dicts(model))
    types = [part.get('type') for part in parts if part.get('type') is not None]
    for name in types:
        where, dot, short = name.rpartition('.') if isinstance(name, str) else ('', '', name)
        if not callable(name) and not (  # else _name_class put it there
            (where if dot else scope) in SCOPES
            and short in _registered_layers(where or scope)
            and (dot or find_spec(short) is None)  # else a registry imports the module of that name
        ):
            yield name
    for part in parts:
        if part.get('_scope_', scope) not in SCOPES:
            yield part['_scope_']
        yield from (key for key in part if not isinstance(key, str) or not _WORD.fullmatch(key))
    for word in _leaves(model):
        if not isinstance(word, (str, int, float, type(None))) and not callable(word):
            yield word
        elif isinstance(word, str) and word not in (*types, *SCOPES):
            if not _WORD.fullmatch(word) or _is_foreign_module(word) or os.path.exists(word):
                yield word
    for part in parts:
        for key, value in part.items():
            if _NAMES_FILES.search(key) and (value is True or isinstance(value, (str, dict))):
                yield f'{key}={value}'
    for step in pipeline:
        name = step.get('type') if isinstance(step, dict) else None
        package, dot, short = name.rpartition('.') if isinstance(name, str) else ('', '', name)
        allowed = short in TRANSFORMS and (package in SCOPES or not dot)
        if not allowed and not callable(name):
            yield step.get('type') if isinstance(step, dict) else step
        for word in _leaves(step):
            if isinstance(word, str) and word != name and not _WORD.fullmatch(word):
                yield word


def _name_class(part: dict, registered: Callable[[str], Dict[str, Any]]) -> None:
    """Replaces the full name of an allowed class, as configs in pure Python have, by the class.

    A registry would import what the name says. Here the module must have been imported already.
    """
    name = part.get('type')
    module, _, short = name.rpartition('.') if isinstance(name, str) else ('', '', '')
    package = module.split('.')[0]
    if package in SCOPES and not (module == package and short in registered(package)):
        made = vars(sys.modules.get(module, object)).get(short)
        if made in registered(package).values():
            part['type'] = made


def _is_foreign_module(word: str) -> bool:
    """Whether a word is the name of a module that is not Python's own."""
    own = set(getattr(sys, 'stdlib_module_names', ())) - {'antigravity', 'this'}
    try:
        return word not in own and find_spec(word.split('.')[0]) is not None
    except ValueError:  # such as for __main__
        return True


def _leaves(value: Any) -> Iterator[Any]:
    """Every value inside nested dicts and lists."""
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


@lru_cache(maxsize=None)
def _registered_layers(scope: str) -> Dict[str, Any]:
    """The layers that a package and mmengine register, and mmcv's operators, by their names."""
    operators = import_module('mmcv.ops')
    layers = {name: getattr(operators, name) for name in operators.__all__}
    import_module('mmcv.cnn')  # registers its layers in mmengine's registry
    for registry in (r for kind in ('MODELS', 'TASK_UTILS') for r in _registries(scope, kind)):
        for name, made in registry.module_dict.items():
            if made.__module__.startswith(_ROOMS):
                layers[name] = made
    return layers


@lru_cache(maxsize=None)
def _registered_transforms(scope: str) -> Dict[str, Any]:
    """The transforms in ``TRANSFORMS`` that a package and mmcv register, by their full names."""
    import_module('mmcv.transforms')  # registers them in mmengine's registry
    return {
        f'{made.__module__}.{name}': made
        for registry in _registries(scope, 'TRANSFORMS')
        for name, made in registry.module_dict.items()
        if name in TRANSFORMS
    }


def _registries(scope: str, kind: str) -> Iterator[Registry]:
    """The registries of mmengine and of a package, with everything in them."""
    for package in ('mmengine', scope):
        with suppress(ImportError):  # mmcv has no registries
            registry = getattr(import_module(f'{package}.registry'), kind, None)
            if registry is not None:
                registry.import_from_location()
                yield registry


class _DictCallsToDicts(ast.NodeTransformer):
    """Replaces dict({'a.b': 1}, c=2), which mmengine writes, with {'a.b': 1, 'c': 2}."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        first = node.args[0] if node.args else ast.Dict(keys=[], values=[])
        if getattr(node.func, 'id', None) != 'dict' or not isinstance(first, ast.Dict):
            return node  # literal_eval will refuse it
        keys = [keyword.arg and ast.Constant(keyword.arg) for keyword in node.keywords]
        values = [keyword.value for keyword in node.keywords]
        return ast.Dict(keys=first.keys + keys, values=first.values + values)
