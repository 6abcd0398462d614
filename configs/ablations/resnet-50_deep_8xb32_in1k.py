# Table 2: ResNet-50 with deep training, for the first third of the epochs as for VanillaNet.
_base_ = './resnet-50_neither_8xb32_in1k.py'

model = dict(backbone=dict(deep_training=True))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=33)]
