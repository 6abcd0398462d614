# The digits' Mask R-CNN on a ResNet-18 of 3/8 of the width: to compare what 8 bits cost.
_base_ = 'mask_rcnn_vanillanet-6_digits.py'

model = dict(
    backbone=dict(_base_.digits_resnet18, out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[24, 48, 96, 192]),
)
optim_wrapper = _base_.digits_resnet18_optim_wrapper
custom_hooks = None
