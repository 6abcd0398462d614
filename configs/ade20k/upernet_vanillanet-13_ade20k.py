# UPerNet with VanillaNet-13 on ADE20K: MMSegmentation's usual schedule (160k iterations of 16
# images of 512x512), and the optimizer of our COCO configs. The authors published no recipe.
_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/vanillanet13_dense.py',
]

crop_size = (512, 512)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(_base_.vanillanet13, out_indices=(0, 1, 2, 3)),
    decode_head=dict(in_channels=[512, 1024, 2048, 4096], num_classes=150),
    auxiliary_head=dict(in_channels=2048, num_classes=150),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    _base_.layer_decay,
    _delete_=True,
    type='OptimWrapper',
    # Spelled out: inside a wrapper that is replaced, adamw's own _delete_ would stay as a setting.
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs with 2 images each
# Pre-trained weights are past the paper's λ schedule: λ stays 1, and the run ends with fusing.
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=0)]
