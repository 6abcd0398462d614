# VanillaNet-13-1.5x† on ImageNet-1k: its maps are 75x75, then adaptive pooling makes 38, 19, 10.
# Table 7 does not list it: it takes the recipe of VanillaNet-13, from scratch.
_base_ = './vanillanet-13-x1.5_8xb128_in1k.py'

model = dict(backbone=dict(arch='13-x1.5-ada'))
