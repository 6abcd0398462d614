# The baseline of Table 5: mmdet's Mask R-CNN with Swin-T and its optimizer, with the schedule of
# mask_rcnn_vanillanet13.py.
_base_ = ['mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', '../_base_/coco_recipe.py']

train_pipeline = _base_.train_masks
train_dataloader = dict(_base_.batches, dataset=dict(pipeline=train_pipeline))
param_scheduler = [_base_.warmup, dict(_base_.steps, milestones=[10, 12])]
auto_scale_lr = _base_.auto_scale
