"""Ends a run as soon as it cannot succeed, instead of hours later."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...checkpoint.numbers import find_fault
from ...coco_annotations import explain_classes, explain_order, list_some
from ...config import PACKAGES
from ...errors import UsageError, reason
from ...models.folding.arithmetic import part
from ...models.folding.foldable import complain, match
from ...models.folding.network import unwrap
from ...models.loading.names import own_names
from ...models.loading.weights import pretrained_cfgs
from ...models.vanillanet import VanillaNet
from ...registry import HOOKS, register

# The parts of models whose num_classes is that of the data.
HEADS = re.compile(r'(bbox_head|roi_head\.bbox_head|roi_head\.mask_head|decode_head|head)(\.\d+)?')
# How weights differ from those that a network needs.
UNFIT = ('missing', 'of another shape')


@register(HOOKS)
class RunCheckHook(Hook):
    """Checks what only a run knows; the programs in ``tools/`` add it to each run.

    - Before the run: no data set is empty or lacks some of its classes; the heads have as many
      classes as the data; metrics read the annotations of the images that are evaluated; a
      detector's features have the strides of its anchors or points.
    - Images and annotations that cannot be loaded are named.
    - In training: weights stay finite. A run that diverges ends at the iteration where that is
      seen, and does not write a checkpoint with such weights.

    Raises:
        UsageError: if one of these does not hold.
    """

    priority = 'HIGH'

    def before_run(self, runner: Runner) -> None:
        trained: List[Any] = []
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop', None)
            for dataset in _leaves(getattr(getattr(loop, 'dataloader', None), 'dataset', None)):
                _name_files(dataset)
                _check_classes(dataset, f'{name}_dataloader', unwrap(runner.model))
                if name == 'train':
                    _check_boxes(dataset)
                    trained.append(dataset)
                for other in trained:
                    _check_order(dataset, other, f'{name}_dataloader')
                for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                    _check_images(dataset, metric, name)
        if hasattr(getattr(runner, '_train_loop', None), 'dataloader') and _is_plain(runner.model):
            _check_strides(unwrap(runner.model))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = unwrap(runner.model)
        weights = own_names(checkpoint.get('state_dict', checkpoint), model)
        if runner._resume and _is_plain(runner.model):
            mismatches = match(model, weights)[1]
            same_optimizer = _has_options(runner.optim_wrapper, checkpoint.get('optimizer'))
            if any(mismatches[kind] for kind in ('', *UNFIT)) or not same_optimizer:
                found = next((each for kind in UNFIT for each in mismatches[kind]), 'its optimizer')
                raise UsageError(
                    f'checkpoint {runner._load_from} is of another config ({found}): resume with '
                    'the config that it was trained with, or start from its weights with '
                    '--cfg-options load_from=..., without --resume.'
                )
        for name, module in [] if runner._resume else model.named_modules():
            if not isinstance(module, VanillaNet):
                continue
            own = part(weights, f'{name}.')
            if own:  # before EMA hooks look for each
                mismatches = match(module, own)[1]
                complain({kind: mismatches[kind] for kind in ('', *UNFIT)}, f'model.{name}')
            elif not any(pretrained_cfgs(module.init_cfg)):
                raise UsageError(
                    f'checkpoint {runner._load_from} holds no weights of model.{name}, which would '
                    'train from scratch: take another file, or leave load_from out.'
                )

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


def _is_plain(model: nn.Module) -> bool:
    """Whether nothing but DDP wraps a model; others, such as FSDP, hold its weights otherwise."""
    return not is_model_wrapper(model) or isinstance(model, DistributedDataParallel)


def _has_options(wrapper: Any, state: Any) -> bool:
    """Whether an optimizer has as many groups, of the same options, as a checkpoint's."""
    if not isinstance(wrapper, OptimWrapper) or not isinstance(state, dict):
        return True
    its, own = state.get('param_groups'), wrapper.optimizer.param_groups
    if not isinstance(its, list):
        return True
    options = ('momentum', 'betas', 'alpha', 'dampening', 'rho')  # by which optimizers differ
    return len(its) == len(own) and all(
        (name in one) == (name in other) for one, other in zip(its, own) for name in options
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
        known = kind.__module__.split('.')[0] in ('mmcv', *PACKAGES)
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
            f'{path} cannot be loaded ({reason(error)}): mend it, or remove it from the data.'
        ) from error


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
    order = explain_order(ann_file, classes) if _is_numbered_by_file(dataset) else None
    if order:
        raise UsageError(f'{where}: {order}')
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
                f'{len(classes)} classes ({list_some(classes)}): set num_classes of the heads to '
                f'{len(classes)}, or metainfo=dict(classes=...) of the data sets to the classes '
                'of the model.'
            )


def _is_kind(made: Any, name: str) -> bool:
    return name in [each.__name__ for each in type(made).__mro__]


def _is_numbered_by_file(dataset: Any) -> bool:
    """Whether the order of categories in its file decides which class has which number."""
    owners = [kind for kind in type(dataset).__mro__ if 'load_data_list' in vars(kind)]
    return bool(owners) and owners[0].__name__ == 'CocoDataset'


def _check_order(dataset: Any, trained: Any, where: str) -> None:
    """Raises UsageError if classes have other numbers than in the data of the training."""
    both = [(getattr(each, 'metainfo', None) or {}).get('classes') for each in (dataset, trained)]
    if not all(isinstance(each, (list, tuple)) for each in both):
        return
    names, known = map(list, both)
    if set(names) <= set(known) and names != known[: len(names)]:
        i = next(i for i in range(len(names)) if names[i] != known[i])
        raise UsageError(
            f'{where}: class {i} is {names[i]}, but {known[i]} in train_dataloader: set the same '
            'metainfo=dict(classes=...) in all data sets.'
        )


def _some(dataset: Any, most: int = 200) -> Iterator[dict]:
    """What a data set knows of some of its images."""
    for i in range(0, len(dataset), max(1, len(dataset) // most)):
        yield dataset.get_data_info(i)


def _check_images(dataset: Any, metric: Any, name: str) -> None:
    """Raises UsageError if a metric's file of annotations is of other images.

    Files number their images from the same number on, so it would compare any with any.
    """
    images = getattr(getattr(metric, '_coco_api', None), 'imgs', None)
    if not isinstance(images, dict) or not _is_kind(dataset, 'CocoDataset'):
        return
    for info in _some(dataset):
        image, own = images.get(info.get('img_id')), Path(info.get('img_path', '')).name
        if image is None or Path(image.get('file_name', own)).name != own:
            raise UsageError(
                f'{name}_evaluator has other images than {name}_dataloader, which has {own}: set '
                f'its ann_file to that of the data, {dataset.ann_file}.'
            )


def _check_boxes(dataset: Any) -> None:
    """Raises UsageError if images have no box; it looks at some of them."""
    if not _is_kind(dataset, 'CocoDataset'):
        return
    # Of crowds, ignore_flag is 1; what is no list of instances is of another kind of data.
    if not any(
        instance.get('ignore_flag', 0) == 0
        for info in _some(dataset)
        for instance in info.get('instances', [{}])
    ):
        raise UsageError(
            f'no image of {dataset.ann_file} has a box that can be used: bbox is [x, y, width, '
            'height] in pixels, and iscrowd 0.'
        )


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
    for extractor in _extractors(model) if got else ():
        strides = list(extractor.featmap_strides)
        if strides != list(got[: len(strides)]):
            raise UsageError(
                f'bbox_roi_extractor.featmap_strides is {strides}, but the features of the neck '
                f'have the strides {list_some(got)}: set it to the first of those.'
            )
    right = got is None or (
        len(got) == len(expected) and all(0.6 < g / e < 1.6 for g, e in zip(got, expected))
    )
    if not right:
        raise UsageError(
            f'the features of the neck have the strides {list_some(got)}, but the anchors or '
            f'points of the head {list_some(expected)}: choose other out_indices of the backbone, '
            'start_level '
            '(0, if the backbone returns only what the neck needs) or num_outs of the neck, or '
            'other strides of the head.'
        )


def _extractors(model: nn.Module) -> List[Any]:
    """What takes features of regions, in detectors of two stages or more."""
    found = getattr(getattr(model, 'roi_head', None), 'bbox_roi_extractor', None)
    several = found if isinstance(found, nn.ModuleList) else [found]
    return [each for each in several if hasattr(each, 'featmap_strides')]


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
