# RetinaNet with a narrow VanillaNet on handwritten digits: from scratch, in minutes on a laptop's
# CPU, with the paper's λ schedule inside the run.
_base_ = ['../retinanet_vanillanet13.py', '../_base_/digits_recipe.py']

model = dict(
    backbone=_base_.digits_backbone,
    neck=dict(in_channels=[96, 192, 384], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=2, ratios=[1.2, 2.2], strides=[8, 16, 32]
        ),
    ),
)

train_pipeline = _base_.digits_train_boxes
test_pipeline = _base_.digits_test_boxes
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(_base_.digits_to_train, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=10, num_workers=1, dataset=dict(_base_.digits, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = _base_.digits_evaluator
test_evaluator = val_evaluator

max_epochs = 7
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = _base_.digits_optim_wrapper
param_scheduler = [_base_.digits_warmup, dict(_base_.digits_cosine, end=max_epochs)]
default_hooks = _base_.digits_hooks
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=3)]
