# UPerNet with a narrow VanillaNet on the maps of the handwritten digits: from scratch, in minutes on
# a laptop's CPU, with the paper's λ schedule inside the run.
_base_ = './upernet_vanillanet13.py'

crop_size = (256, 256)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='6', widen_factor=0.09375, act_num=3, norm_cfg=dict(type='BN'), init_cfg=None
    ),
    decode_head=dict(
        in_channels=[48, 96, 192, 384], channels=64, num_classes=11, norm_cfg=dict(type='BN')
    ),
    auxiliary_head=dict(in_channels=192, channels=32, num_classes=11, norm_cfg=dict(type='BN')),
)

digits = dict(
    type='BaseSegDataset',
    data_root='data/digits',
    metainfo=dict(
        classes=(
            *('background', 'zero', 'one', 'two', 'three', 'four'),
            *('five', 'six', 'seven', 'eight', 'nine'),
        ),
        palette=[
            *([0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200]),
            *([245, 130, 48], [145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60]),
            [250, 190, 212],
        ],
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **digits,
        data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **digits,
        data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017'),
        pipeline=train_pipeline,
    ),
)
test_dataloader = val_dataloader

max_iters = 450  # 6 epochs
train_cfg = dict(max_iters=max_iters, val_interval=150)
optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True), optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=0, end=max_iters),
]
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=150, max_keep_ckpts=2)
)
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=200)]
