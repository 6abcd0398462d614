# Table 2: VanillaNet-6 with series activation, not deep training: each layer is one convolution.
_base_ = '../imagenet/vanillanet-6_8xb128_in1k.py'

model = dict(backbone=dict(merged=True), head=dict(merged=True))
custom_hooks = [dict(_base_.custom_hooks[0], decay_epochs=0), _base_.custom_hooks[1]]
