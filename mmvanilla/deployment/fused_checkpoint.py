"""Checkpoints of fused networks, with everything that is needed to run them."""

from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmengine.config import Config
from mmengine.utils import apply_to
from torch import nn

from ..checkpoint import replace_when_whole
from ..config import deploy_config
from ..version import __version__

# Top-level settings that only training uses, including EMA hooks.
OF_TRAINING = (
    *('train_dataloader', 'train_cfg', 'val_dataloader', 'val_cfg', 'val_evaluator'),
    *('optim_wrapper', 'param_scheduler', 'auto_scale_lr', 'custom_hooks'),
    *('load_from', 'resume', 'work_dir', 'launcher'),
)


def inference_config(cfg: Config) -> Config:
    """A copy of a config for fused weights, without settings that only training uses."""
    cfg = deploy_config(cfg)
    for name in OF_TRAINING:
        cfg.pop(name, None)
    return cfg


def save_fused(
    path: Union[str, Path],
    network: nn.Module,
    cfg: Config,
    dataset_meta: Optional[dict],
    **progress: Any,
) -> None:
    """Writes a fused network to a checkpoint file that holds its config and its classes.

    Args:
        path: The file.
        network: The fused network.
        cfg: A config that builds it in deploy form.
        dataset_meta: The data set's ``metainfo`` with the names of the classes, or None.
        progress: More entries for the checkpoint's ``meta``.
    """
    meta = dict(cfg=cfg.pretty_text, form='deploy', **progress, mmvanilla_version=__version__)
    if dataset_meta is not None:  # inferencers fail on None
        meta['dataset_meta'] = dataset_meta
    # Other layers may keep more than tensors.
    weights = apply_to(dict(network.state_dict()), torch.is_tensor, torch.Tensor.cpu)
    with replace_when_whole(path) as temporary:
        torch.save(dict(meta=meta, state_dict=weights), temporary)
