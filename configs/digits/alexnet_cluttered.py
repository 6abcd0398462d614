# AlexNet for the scaled ablations (Table 2), here with neither technique: its convolutions, of full
# width; global average pooling replaces the linear layers, which need an image of 224x224.
_base_ = '../_base_/cluttered_digits_recipe.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvanilla.with_techniques',
        network=dict(type='AlexNet'),
        deep_training=False,
        act_num=None,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
