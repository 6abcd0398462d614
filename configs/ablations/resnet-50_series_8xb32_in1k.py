# Table 2: ResNet-50 with series activation.
_base_ = './resnet-50_neither_8xb32_in1k.py'

model = dict(backbone=dict(act_num=3))
