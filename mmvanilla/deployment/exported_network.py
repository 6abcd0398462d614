"""Exported files as networks of OpenMMLab: evaluated, compared and drawn as those of torch are."""

import copy
import json
import warnings
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import UsageError
from .exporting import denormalize, deploy_settings, need

BACKENDS = {'.onnx': 'onnxruntime', '.xml': 'openvino', '.pt': 'torchscript'}


def is_exported(path: Union[str, Path]) -> bool:
    """Whether a file, by its name, is an exported network that can be run here."""
    return Path(path).suffix in ('.onnx', '.xml')


def read_description(path: Union[str, Path]) -> Tuple[dict, List[str]]:
    """What a file says of itself (``exporting.describe``), and the names of its outputs.

    Raises:
        UsageError: if a package is missing, or if the file is absent, damaged or not one of ours.
    """
    need(f'running {path}', 'mmdeploy', BACKENDS[Path(path).suffix])
    for file in (Path(path), Path(path).with_suffix('.bin')):
        if not file.is_file() and (file.suffix != '.bin' or Path(path).suffix == '.xml'):
            raise UsageError(f'{file} does not exist: check the path.')
    try:
        if Path(path).suffix == '.onnx':
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
            found = session.get_modelmeta().custom_metadata_map
            metadata = {name: json.loads(value) for name, value in found.items()}
            names = [each.name for each in session.get_outputs()]
        else:
            import openvino

            from . import openvino_files

            network = openvino.Core().read_model(path)
            metadata = openvino_files.read_metadata(network)
            names = [each.any_name for each in network.outputs]
    except Exception as error:  # runtimes raise many kinds of errors, OpenVINO with a stack first
        why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UsageError(f'{path} cannot be read ({why}): export the network again.') from error
    if not _is_description(metadata):
        raise UsageError(f'{path} was not written by tools/deploy.py, so it lacks its settings.')
    return metadata, names


def _is_description(metadata: dict) -> bool:
    """Whether metadata have what is used here, of the right kinds."""
    classes, mean, std = (metadata.get(name) for name in ('classes', 'mean', 'std'))
    return (
        isinstance(metadata.get('config'), str)
        and all(isinstance(metadata.get(k), bool) for k in ('normalized_inside', 'cuts_boxes'))
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(x, list) and len(x) == len(mean) > 0 for x in (mean, std))
        and all(isinstance(x, float) and isfinite(x) for x in mean + std)
        and all(x > 0 for x in std)
    )


def load_exported(
    path: Union[str, Path], cfg: Config, description: Optional[Tuple[dict, List[str]]] = None
) -> nn.Module:
    """An exported network on the CPU; its ``test_step`` takes and returns what torch's does.

    Args:
        path: Its file.
        cfg: A config of the network that was exported.
        description: What ``read_description`` returns, if it was called, or cannot be.

    Raises:
        UsageError: as ``read_description``, and if the config is of another kind of network.
    """
    metadata, names = description or read_description(path)
    settings = deploy_settings(cfg, 'masks' in names)
    if names != settings.onnx_config.output_names:
        raise UsageError(
            f'{path} gives {", ".join(names)}, so it is not of this config: name the config that '
            'it was exported with.'
        )
    from mmdeploy.apis.utils import build_task_processor

    settings.backend_config.type = BACKENDS[Path(path).suffix]
    cfg = copy.deepcopy(cfg)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor') or {})
    task = build_task_processor(cfg, settings, 'cpu')
    with warnings.catch_warnings(), _no_warnings_in_logs():
        warnings.simplefilter('ignore')
        model = task.build_backend_model([str(path)], task.update_data_preprocessor)
    if metadata['normalized_inside']:
        model.wrapper.register_forward_pre_hook(
            lambda _, args: ({name: denormalize(x, metadata) for name, x in args[0].items()},)
        )
    if metadata['cuts_boxes']:
        model.register_forward_hook(_cut_boxes)
    model.dataset_meta = dict(classes=tuple(metadata['classes']))
    return model


@contextmanager
def _no_warnings_in_logs() -> Iterator[None]:
    """mmengine warns that mmdeploy has registries of its own."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _cut_boxes(_: nn.Module, __: Any, samples: List[BaseDataElement]) -> None:
    """Cuts boxes at the image, and drops those outside: mmdeploy cuts where its padding ends."""
    for sample in samples:
        if 'pred_instances' in sample:
            height, width = sample.ori_shape[:2]
            boxes = sample.pred_instances.bboxes
            boxes[:, ::2].clamp_(0, width)
            boxes[:, 1::2].clamp_(0, height)
            is_inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
            sample.pred_instances = sample.pred_instances[is_inside]
