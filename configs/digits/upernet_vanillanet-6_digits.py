# UPerNet with a narrow VanillaNet on handwritten digits against background: from scratch, in
# minutes on a laptop's CPU, with the paper's λ schedule inside the run.
_base_ = ['../ade20k/upernet_vanillanet-13_ade20k.py', '../_base_/digits_recipe.py']

crop_size = (256, 256)
# 95 of 100 pixels are background: unweighted, they drown the digits at the start.
loss = dict(class_weight=[0.1, 1.0])
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=_base_.digits_backbone,
    decode_head=dict(
        in_channels=[48, 96, 192, 384],
        channels=32,
        num_classes=2,
        norm_cfg=dict(type='BN'),
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        in_channels=192, channels=32, num_classes=2, norm_cfg=dict(type='BN'), loss_decode=loss
    ),
)

segmented_digits = dict(
    type='BaseSegDataset',
    data_root=_base_.digits_root,
    metainfo=dict(classes=('background', 'digit'), palette=[[0, 0, 0], [255, 225, 25]]),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **segmented_digits,
        data_prefix=dict(img_path='train2017', seg_map_path='stuffthingmaps/train2017'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        **segmented_digits,
        data_prefix=dict(img_path='val2017', seg_map_path='stuffthingmaps/val2017'),
        pipeline=train_pipeline,
    ),
)
test_dataloader = val_dataloader

max_iters = 450  # 3 epochs
train_cfg = dict(max_iters=max_iters, val_interval=150)
optim_wrapper = dict(_base_.digits_optim_wrapper, optimizer=dict(lr=3e-3))
param_scheduler = [
    _base_.digits_warmup,
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=0, end=max_iters),
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=150, max_keep_ckpts=2))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=150)]
