# The digits' RetinaNet on a ResNet-18 of 3/8 of the width: to compare what 8 bits cost.
_base_ = 'retinanet_vanillanet-6_digits.py'

model = dict(
    backbone=dict(_base_.digits_resnet18, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[48, 96, 192]),
)
optim_wrapper = _base_.digits_resnet18_optim_wrapper
custom_hooks = None
