# Mask R-CNN with VanillaNet-13 on COCO, with the recipe of the authors' repository.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/coco_recipe.py',
]

pretrained = _base_.distilled_weights
model = dict(
    backbone=dict(_base_.vanillanet13, out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[512, 1024, 2048, 4096]),
)
train_pipeline = _base_.train_masks
train_dataloader = dict(_base_.batches, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(_base_.layer_decay, optimizer=dict(_base_.adamw, lr=1.3e-4))
# The second of the authors' milestones is the end of the run: the rate falls once.
param_scheduler = [_base_.warmup, dict(_base_.steps, milestones=[10, 12])]
auto_scale_lr = _base_.auto_scale
custom_hooks = _base_.fuse_at_end
