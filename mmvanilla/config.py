"""Walking through configs."""

import copy
import inspect
from typing import Any, Iterator

from mmengine.config import Config

from .registry import MODELS


def nested_dicts(value: Any) -> Iterator[dict]:
    """Every dict inside nested dicts and lists, including ``value`` itself."""
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
