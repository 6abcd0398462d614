"""The main config, at a size that trains in seconds."""

from helpers.config_options import loader_options

CONFIG = 'configs/retinanet_vanillanet13.py'
CLASSES = 'zero,one,two,three,four,five,six,seven,eight,nine'
# The main config at 1/64 of its width, on small images. Random augmentation is off, because
# mmengine cannot resume its state.
NARROW = [
    'model.backbone.init_cfg=None',
    'model.backbone.widen_factor=0.015625',
    'model.neck.in_channels=[16,32,64]',
    'model.neck.out_channels=8',
    'model.bbox_head.in_channels=8',
    'model.bbox_head.feat_channels=8',
    'model.bbox_head.stacked_convs=1',
    'model.bbox_head.num_classes=10',
    'model.test_cfg.score_thr=0.0',
    'train_dataloader.dataset.pipeline.2.scales=[(128,128)]',
    'train_dataloader.dataset.pipeline.3.prob=0.0',
    'test_dataloader.dataset.pipeline.1.scale=(128,128)',
    'optim_wrapper.optimizer.lr=0.001',
    'default_hooks.logger.interval=1',
    'train_cfg.max_epochs=3',
    'train_cfg.val_interval=3',
    'custom_hooks.0.decay_epochs=2',
    'randomness.seed=0',
]


def narrow_options(digits):
    data = (f'dataset.data_root={digits}/', f'dataset.metainfo.classes={CLASSES}')
    options = [*NARROW, *loader_options(*data)]
    for name in ('val', 'test'):
        options.append(f'{name}_evaluator.ann_file={digits}/annotations/instances_val2017.json')
    return ['--cfg-options', *options]
