# Table 2: AlexNet with deep training and series activation.
_base_ = './alexnet_deep_8xb32_in1k.py'

model = dict(backbone=dict(act_num=3))
