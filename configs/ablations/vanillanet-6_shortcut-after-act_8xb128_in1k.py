# Table 3: VanillaNet-6 with parameter-free shortcuts after the activation.
_base_ = '../imagenet/vanillanet-6_8xb128_in1k.py'

model = dict(backbone=dict(shortcut='after_act'))
