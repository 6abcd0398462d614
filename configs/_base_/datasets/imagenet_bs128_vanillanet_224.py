# ImageNet-1k as in Table 7: RandAugment rand-m7-mstd0.5-inc1 and random erasing. The table's colour
# jitter of 0.4 did nothing in the authors' pipeline, where RandAugment replaces it; we omit it.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=7,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(value) for value in _base_.bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Test crop ratio 224 / 256 = 0.875.
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=128, persistent_workers=True, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
test_evaluator = [
    dict(type='Accuracy', topk=(1, 5)),
    dict(type='mmvanilla.ImageNetReaL', labels='data/imagenet/real.json'),
]
