# VanillaNet-12 on ImageNet-1k, as in Table 7 of the paper: from the weights of VanillaNet-11.
_base_ = './vanillanet-11_8xb128_in1k.py'

pretrained = 'work_dirs/vanillanet-11_8xb128_in1k/epoch_300.pth'

model = dict(backbone=dict(arch='12', init_cfg=dict(checkpoint=pretrained, source_arch='11')))

# Test crop ratio 0.95, the short side 224 / 0.95 rounded down as the authors do.
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 235
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
