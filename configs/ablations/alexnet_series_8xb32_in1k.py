# Table 2: AlexNet with series activation.
_base_ = './alexnet_neither_8xb32_in1k.py'

model = dict(backbone=dict(act_num=3))
