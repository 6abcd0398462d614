# What the COCO configs share: the recipe of the authors' repository, for 8 GPUs with 4 images each.
# Under names of its own, which the configs refer to: so it goes with mmdet's bases of any model.
resize_and_flip = [
    dict(
        type='RandomChoiceResize',
        scales=[(1333, shorter_side) for shorter_side in range(480, 1025, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
]
adamw = dict(_delete_=True, type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
warmup = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
steps = dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, gamma=0.1)
auto_scale = dict(base_batch_size=32)
