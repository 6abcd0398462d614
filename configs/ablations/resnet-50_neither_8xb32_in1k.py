# Table 2: ResNet-50 with neither technique, by MMPretrain's schedule of 100 epochs.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvanilla.with_techniques',
        network=_base_.model.backbone,
        deep_training=False,
        act_num=None,
    )
)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=10))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=0)]
