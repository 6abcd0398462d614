# Table 2: AlexNet with deep training, for the first third of the epochs as for VanillaNet.
_base_ = './alexnet_neither_8xb32_in1k.py'

model = dict(backbone=dict(deep_training=True))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', decay_epochs=33)]
