# Tables 1 and 2: VanillaNet-6 with deep training, without series activation: series number 0.
_base_ = '../imagenet/vanillanet-6_8xb128_in1k.py'

model = dict(backbone=dict(act_num=0))
