# VanillaNet-13-1.5x on ImageNet-1k. Table 7 does not list it: it takes the recipe of VanillaNet-13,
# from scratch, since no shallower network has its widths.
_base_ = './vanillanet-13_8xb128_in1k.py'

model = dict(backbone=dict(arch='13-x1.5', init_cfg=None), head=dict(in_channels=6144))
