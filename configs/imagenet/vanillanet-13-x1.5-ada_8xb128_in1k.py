# VanillaNet-13-1.5x† on ImageNet-1k, whose maps adaptive pooling fixes at 75, 38, 19 and 10.
# Table 7 does not list it: it takes the recipe of VanillaNet-13, from scratch.
_base_ = './vanillanet-13-x1.5_8xb128_in1k.py'

model = dict(backbone=dict(arch='13-x1.5-ada'))
