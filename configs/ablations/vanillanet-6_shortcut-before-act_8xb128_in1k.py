# Table 3: VanillaNet-6 with parameter-free shortcuts before the activation.
_base_ = '../imagenet/vanillanet-6_8xb128_in1k.py'

model = dict(backbone=dict(shortcut='before_act'))
