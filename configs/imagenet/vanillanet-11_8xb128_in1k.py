# VanillaNet-11 on ImageNet-1k, as in Table 7 of the paper: from the weights of VanillaNet-10.
_base_ = './vanillanet-8_8xb128_in1k.py'

# The run of VanillaNet-10, or the authors' file. The one layer that it lacks, and the classifier,
# start at random; None trains from scratch (as --cfg-options model.backbone.init_cfg=None does).
pretrained = 'work_dirs/vanillanet-10_8xb128_in1k/epoch_300.pth'

model = dict(
    backbone=dict(
        arch='11',
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, source_arch='10'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
custom_hooks = [
    dict(type='mmvanilla.DeepTrainingHook', decay_epochs=100),
    dict(type='EMAHook', momentum=8e-5, update_buffers=True),
]
