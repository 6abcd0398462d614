# Table 2: AlexNet with neither technique. The paper does not say how it was trained: this is
# MMPretrain's schedule of 100 epochs, at a tenth of its learning rate, as AlexNet needs.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    '../_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvanilla.with_techniques',
        network=dict(type='AlexNet', num_classes=1000),
        deep_training=False,
        act_num=None,
    ),
    head=dict(type='ClsHead', loss=dict(type='CrossEntropyLoss', loss_weight=1.0)),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=0)]
