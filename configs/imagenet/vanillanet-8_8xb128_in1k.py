# VanillaNet-8 on ImageNet-1k, as in Table 7 of the paper.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet_bs128_vanillanet_224.py',
    '../_base_/schedules/imagenet_bs1024_lamb_vanillanet.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(arch='8'))
