"""Batch norms by config, without mmcv."""

from typing import Tuple

from mmengine.dist import is_distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import ABOVE_0, check_arguments
from ..compatibility import SyncBatchNorm
from ..errors import UsageError

NORM_LAYERS = {'BN': nn.BatchNorm2d, 'BN2d': nn.BatchNorm2d, 'SyncBN': SyncBatchNorm}
# In configs in pure Python, types are classes.
NORM_CLASSES = {nn.BatchNorm2d: nn.BatchNorm2d, nn.SyncBatchNorm: SyncBatchNorm}


def is_sync_norm(norm_cfg: dict) -> bool:
    """Whether a config's part names a batch norm that is synchronized among processes."""
    name = getattr(norm_cfg.get('type'), '__name__', norm_cfg.get('type'))
    return name in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')


def build_batch_norm(norm_cfg: dict, num_features: int) -> _BatchNorm:
    """Builds a batch norm from a config like mmcv's; eps is 1e-6 unless ``norm_cfg`` sets it.

    Args:
        norm_cfg: ``type`` ('BN', 'SyncBN' or torch's class), ``requires_grad``, and the layer's
            arguments.
        num_features: Number of channels.

    Raises:
        UsageError: if it is not a batch norm with running statistics: only those can be folded.
    """
    kwargs = {'eps': 1e-6, **norm_cfg}
    norm_type = kwargs.pop('type', None)
    layers = {**NORM_LAYERS, **NORM_CLASSES}
    if norm_type not in layers:
        raise UsageError(
            f'norm_cfg has type {norm_type!r}, which cannot be folded into a convolution: '
            f'choose one of {", ".join(NORM_LAYERS)}.'
        )
    if not kwargs.get('track_running_stats', True):
        raise UsageError(
            'norm_cfg has track_running_stats=False, but folding needs running statistics: leave '
            'it out.'
        )
    requires_grad = kwargs.pop('requires_grad', True)
    made = layers[norm_type]
    check_arguments(made.__init__, 'norm_cfg', (None, num_features), kwargs, {'eps': ABOVE_0})
    norm = made(num_features, **kwargs)
    for param in norm.parameters():
        param.requires_grad = requires_grad
    return norm


def describe_batch_norm(norm_cfg: dict) -> Tuple[Tuple[str, ...], float]:
    """The names of a batch norm's weights, without its counter, and its eps."""
    norm = build_batch_norm(norm_cfg, 1)
    return tuple(name for name in norm.state_dict() if name != 'num_batches_tracked'), norm.eps


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Returns ``norm(x)``; in training, one value per channel is normalized as in eval mode.

    One image on maps of 1x1, such as the last batch of an epoch in a classifier, has no variance;
    torch refuses it.

    Args:
        norm: A batch norm, or ``nn.Identity()``.
        x: Its input, (N, C, H, W).
    """
    waits = isinstance(norm, nn.SyncBatchNorm) and is_distributed()  # for the other processes
    usual = not (isinstance(norm, _BatchNorm) and norm.training and isinstance(x, Tensor)) or waits
    if usual or x.numel() != x.shape[1]:
        return norm(x)
    norm.training = False
    try:
        return norm(x)
    finally:
        norm.training = True
