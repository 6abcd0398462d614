# Mask R-CNN with VanillaNet-13 on COCO, by the recipe of the authors' repository.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/coco_recipe.py',
]

# As in retinanet_vanillanet13.py.
pretrained = 'checkpoints/vanillanet_13_act_num_4_kd_pretrain.pth'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvanilla.VanillaNet',
        arch='13',
        act_num=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    neck=dict(in_channels=[512, 1024, 2048, 4096]),
)

train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    *_base_.resize_and_flip,
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(
    constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.6, blocks_per_layer=2),
    optimizer=dict(_base_.adamw, lr=1.3e-4),
)
# The second of the authors' milestones is the end of the run: the rate falls once.
param_scheduler = [_base_.warmup, dict(_base_.steps, milestones=[10, 12])]
auto_scale_lr = _base_.auto_scale

custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=0)]
