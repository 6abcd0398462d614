# Faster R-CNN with a narrow VanillaNet-6 on your own data (docs/own_data.md): from scratch, with
# the paper's λ schedule, merged once λ = 1.
_base_ = ['../digits/faster_rcnn_vanillanet-6_digits.py', '../_base_/own_data_recipe.py']

model = dict(
    backbone=dict(widen_factor=0.125),
    neck=dict(in_channels=[64, 128, 256, 512]),
    rpn_head=dict(anchor_generator=dict(scales=[8], ratios=[0.5, 1.0, 2.0])),
    train_cfg=dict(rpn=dict(sampler=dict(num=128)), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rcnn=dict(max_per_img=100)),
)
train_pipeline = _base_.own_train_pipeline
test_pipeline = _base_.own_test_pipeline
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 14
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [_base_.digits_warmup, dict(_base_.digits_cosine, end=max_epochs)]
custom_hooks = [dict(_base_.custom_hooks[0], decay_epochs=6, merge=True)]
