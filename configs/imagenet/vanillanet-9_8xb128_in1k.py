# VanillaNet-9 on ImageNet-1k, as in Table 7 of the paper.
_base_ = './vanillanet-8_8xb128_in1k.py'

model = dict(backbone=dict(arch='9'))
