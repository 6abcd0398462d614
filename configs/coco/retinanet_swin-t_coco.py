# The baseline of Table 5: mmdet's RetinaNet with Swin-T, with the schedule of
# retinanet_vanillanet13.py, and Swin's own learning rate and exceptions from weight decay.
_base_ = ['mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', '../_base_/coco_recipe.py']

train_pipeline = _base_.train_boxes
train_dataloader = dict(_base_.batches, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'absolute_pos_embed': dict(decay_mult=0.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        }
    ),
    optimizer=dict(_base_.adamw, lr=1e-4),
)
param_scheduler = [_base_.warmup, dict(_base_.steps, milestones=[10, 11])]
auto_scale_lr = _base_.auto_scale
