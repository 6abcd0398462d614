# Table 1: VanillaNet-6 with series number 2.
_base_ = '../imagenet/vanillanet-6_8xb128_in1k.py'

model = dict(backbone=dict(act_num=2))
