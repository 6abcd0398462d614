# What the COCO configs share: the recipe of the authors' repository, for 8 GPUs with 4 images each.
_base_ = './vanillanet13_dense.py'

resize_and_flip = [
    dict(
        type='RandomChoiceResize',
        scales=[(1333, shorter_side) for shorter_side in range(480, 1025, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
]
train_boxes = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    *resize_and_flip,
    dict(type='PackDetInputs'),
]
train_masks = [*train_boxes]
train_masks[1] = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
batches = dict(batch_size=4, num_workers=4)
auto_scale = dict(base_batch_size=32)
warmup = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
steps = dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, gamma=0.1)
# Pre-trained weights are past the paper's λ schedule: λ stays 1, and the run ends with fusing.
fuse_at_end = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=0)]
