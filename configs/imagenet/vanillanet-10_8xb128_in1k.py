# VanillaNet-10 on ImageNet-1k, as in Table 7 of the paper.
_base_ = './vanillanet-8_8xb128_in1k.py'

model = dict(backbone=dict(arch='10'))
optim_wrapper = dict(optimizer=dict(weight_decay=0.25))
