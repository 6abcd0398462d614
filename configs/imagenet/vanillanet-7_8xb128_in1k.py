# VanillaNet-7 on ImageNet-1k, as in Table 7 of the paper.
_base_ = './vanillanet-6_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='7'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.4), dict(type='CutMix', alpha=1.0)]),
)
# The authors' command has a learning rate of 0.0047, the paper's table 0.0048.
