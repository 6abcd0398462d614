# Mask R-CNN with a narrow VanillaNet on handwritten digits: from scratch, in minutes on a laptop's
# CPU, with the paper's λ schedule inside the run.
_base_ = ['../mask_rcnn_vanillanet13.py', '../_base_/digits_recipe.py']

strides = [4, 8, 16, 32]
model = dict(
    backbone=_base_.digits_backbone,
    neck=dict(
        in_channels=[48, 96, 192, 384], out_channels=48, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(scales=[6], ratios=[1.2, 2.2], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=48, featmap_strides=strides, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=48,
            conv_out_channels=48,
            fc_out_channels=256,
            num_classes=10,
            norm_cfg=dict(type='GN', num_groups=16),
        ),
        mask_roi_extractor=dict(
            out_channels=48, featmap_strides=strides, roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=48,
            conv_out_channels=48,
            num_classes=10,
            norm_cfg=dict(type='GN', num_groups=16),
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)),
)

train_pipeline = _base_.digits_train_masks
test_pipeline = _base_.digits_test_masks
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(_base_.digits_to_train, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=10, num_workers=1, dataset=dict(_base_.digits, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = _base_.digits_evaluator
test_evaluator = val_evaluator

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(_base_.digits_optim_wrapper, optimizer=dict(lr=1.5e-3))
param_scheduler = [_base_.digits_warmup, dict(_base_.digits_cosine, end=max_epochs)]
default_hooks = _base_.digits_hooks
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=3)]
