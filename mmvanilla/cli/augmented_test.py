"""Test-time augmentation: the mean of what a model finds on an image and on its mirror image."""

import copy
from importlib import import_module
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..config import scope_of
from ..errors import UsageError

# By package: the model that averages, the flip that its data samples need, and the module that
# registers the model. Models and flips are those of the package's own tool or base config.
AVERAGING = {
    'mmdet': (
        dict(
            type='DetTTAModel',  # in mmengine's registry
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
        'mmdet.RandomFlip',
        'mmdet.models.test_time_augs',
    ),
    'mmpretrain': (
        dict(type='mmpretrain.AverageClsScoreTTA'),
        'RandomFlip',
        'mmpretrain.models',
    ),
    'mmseg': (dict(type='mmseg.SegTTAModel'), 'mmseg.RandomFlip', 'mmseg.models'),
}


def augment_test(cfg: Config) -> None:
    """Changes a config, in place, so that testing averages over augmented images.

    Args:
        cfg: A config of mmdet, mmpretrain or mmseg. Its ``tta_model`` and ``tta_pipeline`` are used
            if it has them; otherwise the last step of its test pipeline flips images too.

    Raises:
        UsageError: if the config is of another package and has no ``tta_model``.
    """
    scope = scope_of(cfg)
    model, flip, module = AVERAGING.get(scope, (None, None, None))
    if module is not None:
        import_module(module)
    model = cfg.get('tta_model') or model
    data = cfg.test_dataloader.dataset
    while 'dataset' in data:
        data = data.dataset
    pipeline = cfg.get('tta_pipeline')
    if model is None or (pipeline is None and flip is None):
        raise UsageError(
            f'--tta knows nothing about {scope}: set tta_model and tta_pipeline in the config.'
        )
    if pipeline is None:
        *before, last = copy.deepcopy(data.pipeline)
        last.pop('meta_keys', None)  # by default they tell whether the image is flipped
        flips = [dict(type=flip, prob=1.0), dict(type=flip, prob=0.0)]
        pipeline = [*before, dict(type='TestTimeAug', transforms=[flips, [last]])]
    cfg.model = ConfigDict(model, module=cfg.model)
    data.pipeline = pipeline
    if cfg.filename is not None:  # a runner writes its config under this name to the work dir
        path = Path(cfg.filename)
        object.__setattr__(cfg, '_filename', str(path.with_name(f'{path.stem}_tta{path.suffix}')))
