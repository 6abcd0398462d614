# The digits' RetinaNet on a ResNet-18 of 3/8 of the width: to compare what 8 bits cost.
_base_ = 'retinanet_vanillanet-6_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=24,
        stem_channels=24,
        out_indices=(1, 2, 3),
        norm_eval=False,
    ),
    neck=dict(in_channels=[48, 96, 192]),
)
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
)
custom_hooks = None
