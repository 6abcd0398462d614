"""Walking through configs, and reading those in checkpoints."""

import ast
import copy
import inspect
from pathlib import Path
from typing import Any, Iterator, Mapping, Union

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ..errors import UsageError
from ..registry import MODELS


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
    """The config that a checkpoint was trained with, read as values: none of its text is run.

    Args:
        checkpoint: The content of a file of mmengine.
        path: That file, for messages.

    Raises:
        UsageError: if there is none, or if it is more than assignments of values.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    if text is None:
        raise UsageError(f'checkpoint {path} holds no config: name one with --config.')
    try:
        tree = _DictCallsToDicts().visit(ast.parse(text))
        values = {line.targets[0].id: ast.literal_eval(line.value) for line in tree.body}
    except (AttributeError, SyntaxError, ValueError):
        raise UsageError(
            f'the config in checkpoint {path} is not plain values: name one with --config.'
        ) from None
    if values.get('custom_imports'):
        import_modules_from_strings(**values['custom_imports'])
    return Config(values)


class _DictCallsToDicts(ast.NodeTransformer):
    """dict(a=1), as mmengine writes, into {'a': 1}, as literal_eval reads."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if getattr(node.func, 'id', None) != 'dict' or node.args:
            return node  # which literal_eval refuses
        keys = [keyword.arg and ast.Constant(keyword.arg) for keyword in node.keywords]
        return ast.Dict(keys=keys, values=[keyword.value for keyword in node.keywords])
