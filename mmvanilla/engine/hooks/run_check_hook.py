"""Ends a run as soon as it cannot succeed, instead of hours later."""

import json
import math
import re
from functools import partial
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...checkpoint.numbers import find_fault
from ...errors import UsageError
from ...models.folding.arithmetic import part
from ...models.folding.foldable import complain, match
from ...models.folding.network import unwrap
from ...models.loading.names import own_names
from ...models.vanillanet import VanillaNet
from ...registry import HOOKS, register

PACKAGES = ('mmcv', 'mmdet', 'mmpretrain', 'mmseg')
# The parts of models whose num_classes is that of the data.
HEADS = re.compile(r'(bbox_head|roi_head\.bbox_head|roi_head\.mask_head|decode_head|head)(\.\d+)?')


@register(HOOKS)
class RunCheckHook(Hook):
    """Checks what only a run knows; the programs in ``tools/`` add it to each run.

    - Before the run: no data set is empty or lacks some of its classes; the heads have as many
      classes as the data; a detector's features have the strides of its anchors or points.
    - Images and annotations that cannot be loaded are named.
    - In training: weights stay finite. A run that diverges ends at the iteration where that is
      seen, and does not write a checkpoint with such weights.

    Raises:
        UsageError: if one of these does not hold.
    """

    priority = 'HIGH'

    def before_run(self, runner: Runner) -> None:
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop', None)
            for dataset in _leaves(getattr(getattr(loop, 'dataloader', None), 'dataset', None)):
                _name_files(dataset)
                _check_classes(dataset, f'{name}_dataloader', unwrap(runner.model))
        # Other wrappers, such as FSDP, cannot be called from inside.
        wrapped = is_model_wrapper(runner.model)
        wrapped = wrapped and not isinstance(runner.model, DistributedDataParallel)
        if hasattr(getattr(runner, '_train_loop', None), 'dataloader') and not wrapped:
            _check_strides(unwrap(runner.model))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            return
        for name, module in unwrap(runner.model).named_modules():
            weights = part(checkpoint.get('state_dict', {}), f'{name}.')
            if isinstance(module, VanillaNet) and weights:  # before EMA hooks look for each
                mismatches = match(module, own_names(weights, module))[1]
                del mismatches['unexpected']
                complain(mismatches, f'model.{name}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        log = runner.message_hub.log_scalars.get('train/loss')
        loss = 0.0 if log is None else log.current()  # mmengine has it as a number already
        if math.isfinite(loss):
            return
        fault = find_fault(unwrap(runner.model).state_dict())
        if fault is None:  # as when a scaler of gradients skips the step
            runner.logger.warning(f'The loss is {loss} at iteration {runner.iter + 1}.')
        else:
            raise UsageError(_diverged(runner, f'the loss is {loss}, and there is {fault}'))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        fault = find_fault(checkpoint['state_dict'])
        if fault is not None:
            raise UsageError(_diverged(runner, f'there is {fault}'))


def _diverged(runner: Runner, what: str) -> str:
    last = runner.message_hub.runtime_info.get('last_ckpt')
    return (
        f'the run diverged: at iteration {runner.iter + 1} {what}; train with a lower learning '
        'rate, a longer warm-up or clipped gradients (optim_wrapper.clip_grad). '
        + (f'The last checkpoint is {last}.' if last else 'There is no checkpoint yet.')
    )


def _leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside one that combines, repeats or mixes others."""
    inside = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    inside = [each for each in inside if each is not None]
    for each in inside:
        yield from _leaves(each)
    if dataset is not None and not inside:
        yield dataset


def _name_files(dataset: Any) -> None:
    """Makes the transforms that load files name those that cannot be loaded."""
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        kind = type(transform)
        known = kind.__module__.split('.')[0] in PACKAGES
        if known and kind.__name__.startswith('Load') and hasattr(kind, 'transform'):
            transform.transform = partial(_load, kind.transform, transform)


def _load(transform: Callable, self: Any, results: dict) -> Optional[dict]:
    try:
        return transform(self, results)
    except UsageError:
        raise
    except Exception as error:
        path = results.get('img_path')
        if 'Annotations' in type(self).__name__:
            path = results.get('seg_map_path') or f'the annotations of {path}'
        raise UsageError(
            f'{path} cannot be loaded ({type(error).__name__}: {_first_line(error)}): mend it, or '
            'remove it from the data.'
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [''])[0][:200]


def _check_classes(dataset: Any, where: str, model: nn.Module) -> None:
    """Raises UsageError if the data have other classes than the config or the model says."""
    metainfo = getattr(dataset, 'metainfo', None)
    classes = metainfo.get('classes') if isinstance(metainfo, dict) else None
    if classes is None:
        return
    if isinstance(classes, str):
        raise UsageError(
            f'{where}: classes of metainfo is the text {classes!r}: write a tuple, '
            f'classes=({classes!r},).'
        )
    found = getattr(dataset, 'cat_ids', classes)  # of mmdet's data sets in COCO's format
    ann_file = getattr(dataset, 'ann_file', None) or where
    if len(found) != len(classes) or (hasattr(dataset, '__len__') and not len(dataset)):
        raise UsageError(f'{where}: {explain_classes(ann_file, classes)}')
    # Others may be evaluated on images of some of their classes; panoptic data count apart.
    strict = where == 'train_dataloader' or _is_kind(dataset, 'CocoDataset')
    if hasattr(model, 'language_model') or not strict or 'thing_classes' in metainfo:
        return
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        is_head = HEADS.fullmatch(name) and 'RPN' not in type(module).__name__
        if isinstance(number, int) and is_head and number != len(classes):
            raise UsageError(
                f'model.{name}.num_classes is {number}, but the data of {where} have '
                f'{len(classes)} classes ({_list(classes)}): set num_classes of the heads to '
                f'{len(classes)}, or metainfo=dict(classes=...) of the data sets to the classes '
                'of the model.'
            )


def _is_kind(made: Any, name: str) -> bool:
    return name in [each.__name__ for each in type(made).__mro__]


def explain_classes(ann_file: str, classes: Sequence[str]) -> str:
    """The sentence about a file of COCO's format that lacks some or all of the classes."""
    try:
        with open(ann_file, encoding='utf-8') as file:
            names = [category['name'] for category in json.load(file)['categories']]
    except Exception:  # another format, or a remote file
        names = None
    if names is not None and len(set(names)) < len(names):
        return f'{ann_file} has several categories of one name ({_list(names)}): rename them.'
    if names is None or set(classes) <= set(names):
        return (
            f'no image of {ann_file} is left: all are filtered out, as images without boxes are '
            '(filter_cfg).'
        )
    missing = [name for name in classes if name not in names]
    return (
        f'{ann_file} has the categories {_list(names)}, but not {_list(missing)}: set '
        'metainfo=dict(classes=...) of the data sets to those in the file.'
    )


def _list(names: Sequence[str], most: int = 8) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(str, names[:most])) + more


@torch.no_grad()
def _check_strides(model: nn.Module) -> None:
    """Raises UsageError if a detector's features have other strides than its anchors or points."""
    heads = [getattr(model, name, None) for name in ('bbox_head', 'rpn_head')]
    generators = [getattr(head, 'prior_generator', None) for head in heads]
    expected = next((g.strides for g in generators if hasattr(g, 'strides')), None)
    ours = isinstance(getattr(model, 'backbone', None), VanillaNet)
    if expected is None or not ours or not hasattr(model, 'extract_feat'):
        return
    expected = [max(each) if isinstance(each, (tuple, list)) else each for each in expected]
    got = _feature_strides(model, 2 * max(expected))
    right = got is None or (
        len(got) == len(expected) and all(0.6 < g / e < 1.6 for g, e in zip(got, expected))
    )
    if not right:
        raise UsageError(
            f'the features of the neck have the strides {_list(got)}, but the anchors or points of '
            f'the head {_list(expected)}: choose other out_indices of the backbone, start_level '
            '(0, if the backbone returns only what the neck needs) or num_outs of the neck, or '
            'other strides of the head.'
        )


def _feature_strides(model: nn.Module, size: int) -> Optional[Tuple[int, ...]]:
    """The strides of the features of an image; None if they cannot be found."""
    weight = next(model.backbone.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        features = model.extract_feat(weight.new_zeros(1, model.backbone.in_channels, size, size))
        return tuple(round(size / feature.shape[-2]) for feature in features)
    except Exception:  # training will say what does not fit
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
