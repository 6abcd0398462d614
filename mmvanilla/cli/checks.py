"""Checks of a config, made before any long work starts."""

import inspect
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple, get_type_hints

from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, OPTIMIZERS
from mmengine.runner import Runner

from ..arguments import ABOVE_0, ANY_NUMBER, AT_LEAST_0, check_value, nearest
from ..checkpoint import load_checkpoint
from ..compatibility import meta_device
from ..config import PACKAGES, class_of, is_a, nested_dicts, scope_of
from ..errors import UsageError
from ..models.loading.weights import pretrained_cfgs
from ..models.vanillanet import VanillaNet
from .explanations import unknown_type

# Where to get the data sets of the configs, by their classes.
DATA_SOURCES = {
    'CocoDataset': 'COCO 2017 (images and annotations) is at https://cocodataset.org/#download; '
    'unpack train2017, val2017 and annotations',
    'ImageNet': 'ImageNet-1k is at https://www.image-net.org/download.php; unpack train and val',
    'ADE20KDataset': 'ADE20K is at https://groups.csail.mit.edu/vision/datasets/ADE20K; unpack it',
}
# Settings of a config that are not those of a Runner.
OTHER_SETTINGS = (
    *('custom_imports', 'default_scope', 'log_level', 'runner_type', 'auto_scale_lr'),
    *('tta_model', 'tta_pipeline'),
)
# Numbers of a config that mmengine and torch do not check, or only when they use them.
NUMBERS = {
    **{f'train_cfg.{name}': ABOVE_0 for name in ('max_epochs', 'max_iters', 'val_interval')},
    **{f'{part}_dataloader.batch_size': ABOVE_0 for part in ('train', 'val', 'test')},
    **{f'{part}_dataloader.num_workers': AT_LEAST_0 for part in ('train', 'val', 'test')},
    'default_hooks.checkpoint.interval': ANY_NUMBER,  # -1: none
    'default_hooks.checkpoint.max_keep_ckpts': ANY_NUMBER,  # -1: all
    'default_hooks.logger.interval': ABOVE_0,
    'optim_wrapper.accumulative_counts': ABOVE_0,
    'optim_wrapper.optimizer.lr': AT_LEAST_0,
    'optim_wrapper.optimizer.weight_decay': AT_LEAST_0,
    'auto_scale_lr.base_batch_size': ABOVE_0,
}
SETTINGS = (*inspect.signature(Runner).parameters, *OTHER_SETTINGS)
OLD_SETTINGS = dict(
    lr_config='param_scheduler',
    optimizer_config='optim_wrapper',
    checkpoint_config='default_hooks.checkpoint',
    log_config='default_hooks.logger',
    total_epochs='train_cfg.max_epochs',
)
WEIGHTS = 'https://github.com/huawei-noah/VanillaNet/releases'


def check_settings(cfg: Config) -> None:
    """Raises UsageError for misspelt settings of a run, and for settings of another kind.

    mmengine ignores settings that it does not know, which may be variables of the config.
    """
    if 'runner_type' in cfg:  # another runner takes other settings
        return
    hints = get_type_hints(Runner.__init__)
    for name in ('log_level', 'default_scope'):  # which may be of other kinds
        hints.pop(name)
    for name, value in cfg.items():
        if name in hints and (value is not None or name == 'model'):
            check_value(f'{name} of the config', value, hints[name])
        near = nearest(name, SETTINGS)
        if name not in SETTINGS and near is not None and _is_one_letter(name, near):
            raise UsageError(f'the config sets {name}, which nothing reads: did you mean {near}?')
        if name in OLD_SETTINGS:
            raise UsageError(
                f'{name} is a setting of MMDetection 2.x, which nothing reads: '
                f'set {OLD_SETTINGS[name]} instead.'
            )
    for name in ('val_evaluator', 'test_evaluator'):
        evaluator = cfg.get(name)
        if isinstance(evaluator, dict) and 'metrics' in evaluator:
            if class_of(evaluator, scope_of(cfg), METRICS) is not None:
                raise UsageError(
                    f'{name} has metrics, but {evaluator["type"]} is a metric itself: did you mean '
                    'metric?'
                )
    for place, allowed in NUMBERS.items():
        value = _at(cfg, place)
        if isinstance(value, (int, float)) or (isinstance(value, str) and _is_number(value)):
            check_value(place, value, float, allowed)
    _check_scope(cfg.get('default_scope'))
    optimizer = _at(cfg, 'optim_wrapper.optimizer')
    kind = optimizer.get('type') if isinstance(optimizer, dict) else None
    if kind is not None and class_of(optimizer, scope_of(cfg), OPTIMIZERS) is None:
        raise UsageError(f'optim_wrapper.optimizer: {unknown_type(kind, OPTIMIZERS)}')
    wrapper = cfg.get('optim_wrapper') or {}
    if 'type' in wrapper and not wrapper.keys() & {'optimizer', 'constructor'}:
        raise UsageError('optim_wrapper has no optimizer: add optimizer=dict(type=..., lr=...).')


def _is_one_letter(name: str, other: str) -> bool:
    """Whether one letter is missing or another, or two are swapped; variables add letters."""
    if len(name) == len(other):
        differ = [i for i in range(len(name)) if name[i] != other[i]]
        swapped = len(differ) == 2 and sorted(name) == sorted(other)
        return len(differ) == 1 or (swapped and differ[1] == differ[0] + 1)
    return any(name == other[:i] + other[i + 1 :] for i in range(len(other)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _at(part: Any, place: str) -> Any:
    """The setting at a place such as 'train_cfg.max_epochs'; None if there is none."""
    for name in place.split('.'):
        part = part.get(name) if hasattr(part, 'get') else None
    return part


def _check_scope(scope: Optional[str]) -> None:
    if scope in (None, *PACKAGES, *MODELS.root.children) or find_spec(scope) is not None:
        return
    near = nearest(scope, PACKAGES)
    raise UsageError(
        f'default_scope={scope!r} is no package that is installed: '
        + (f'did you mean {near!r}?' if near else 'install it, or name another.')
    )


def check_pretrained(cfg: Config) -> None:
    """Raises UsageError if a local file of pre-trained weights is absent or unreadable."""
    for place, path in _pretrained_files(cfg.model, 'model'):
        if not isinstance(path, str) or '://' in path:
            continue
        if not Path(path).is_file():
            raise UsageError(
                f'pre-trained weights {path} do not exist: put the file there (VanillaNet: '
                f'{WEIGHTS}), name another with --cfg-options {place}=..., or train from scratch '
                f'with --cfg-options {place.replace(".checkpoint", "")}=None.'
            )
        load_checkpoint(path)


def _pretrained_files(part: Any, name: str) -> Iterator[Tuple[str, Any]]:
    """The files of pre-trained weights in a config's part, each with its place in the config."""
    if isinstance(part, dict) and any(pretrained_cfgs(part)):
        yield f'{name}.checkpoint', part['checkpoint']
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key == 'pretrained':
            yield f'{name}.pretrained', value
        elif isinstance(value, (dict, list, tuple)):
            yield from _pretrained_files(value, f'{name}.{key}')


def check_channels(cfg: Config) -> None:
    """Raises UsageError if the neck does not expect the channels that a VanillaNet returns."""
    backbone, neck = cfg.model.get('backbone') or {}, cfg.model.get('neck')
    taken = neck.get('in_channels') if isinstance(neck, dict) else None
    scope = scope_of(cfg)
    if not isinstance(taken, (list, tuple)) or not is_a(backbone, VanillaNet, scope):
        return
    arguments = {**backbone, 'init_cfg': None}
    del arguments['type']
    with meta_device():
        given = list(class_of(backbone, scope)(**arguments).out_channels)
    taken = list(taken)
    if taken not in (given, given[::-1]):  # YOLOv3's neck takes the last stage first
        raise UsageError(
            f'model.neck.in_channels is {taken}, but the backbone returns {given}: set it to that, '
            'or choose other out_indices.'
        )


def check_classes(cfg: Config) -> None:
    """Raises UsageError if a classifier's config contradicts itself about the number of classes."""
    head = cfg.model.get('head') or {}
    classes = head.get('num_classes')
    mixed = (cfg.get('data_preprocessor') or {}).get('num_classes')
    if not isinstance(classes, int):
        return
    if (cfg.model.get('train_cfg') or {}).get('augments') and mixed not in (None, classes):
        raise UsageError(
            f'model.head.num_classes is {classes}, but data_preprocessor.num_classes is {mixed}: '
            'set both to the number of classes in the data.'
        )
    for part in nested_dicts([cfg.get('val_evaluator'), cfg.get('test_evaluator')]):
        topk = part.get('topk') or 0
        largest = max(topk) if isinstance(topk, (list, tuple)) else topk
        if largest > classes:
            raise UsageError(
                f'an evaluator has topk={topk}, but there are {classes} classes: set topk of '
                f'val_evaluator and test_evaluator to at most {classes}.'
            )


def check_data(cfg: Config, *parts: str) -> None:
    """Raises UsageError if files of the named dataloaders or evaluators are missing."""
    for name in parts:
        for part in nested_dicts(cfg.get(name)):
            if not part.keys() & {'data_root', 'ann_file', 'data_prefix', 'split'}:
                continue
            root = part.get('data_root') or ''
            kind = getattr(class_of(part, scope_of(cfg), DATASETS), '__name__', None)
            source = None if part.get('metainfo') else DATA_SOURCES.get(kind)  # else the user's
            prefix = part.get('data_prefix') or ''
            if kind == 'CocoDataset' and isinstance(prefix, dict):  # which opens no seg
                prefix = {name: path for name, path in prefix.items() if name != 'seg'}
            paths = [
                part.get('ann_file'),
                *(prefix.values() if isinstance(prefix, dict) else [prefix]),
            ]
            paths = [os.path.join(root, path) for path in paths if path and isinstance(path, str)]
            # With only a folder, a data set may download its data, unless it is one of those above.
            for path in paths or [os.path.join(root, part.get('split', ''))] * (
                kind in DATA_SOURCES
            ):
                if '://' not in path and not os.path.exists(path):
                    hint = f'{source} under {root or path}' if source else 'put the data there'
                    raise UsageError(
                        f'no data at {path}: {hint}, or name another place in --cfg-options '
                        '(data_root of the data sets, ann_file of the evaluators).'
                    )
