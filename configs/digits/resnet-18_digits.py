# ResNet-18 at 3/8 of the width on handwritten digits, with the recipe of the narrow VanillaNet-6.
_base_ = 'vanillanet-6_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=24,
        stem_channels=24,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        in_channels=192,
        loss=dict(type='CrossEntropyLoss', use_soft=True),
    ),
)
custom_hooks = [
    dict(type='EMAHook', momentum=0.03, update_buffers=True, evaluate_on_origin=True),
]
