# The RetinaNet on your own data with MMDetection's ResNet-18, of as many multiplications: to
# compare.
_base_ = './retinanet_vanillanet-6.py'

model = dict(
    backbone=dict(
        _base_.digits_resnet18, base_channels=15, stem_channels=15, out_indices=(1, 2, 3)
    ),
    neck=dict(in_channels=[30, 60, 120]),
)
optim_wrapper = _base_.digits_resnet18_optim_wrapper
custom_hooks = None
