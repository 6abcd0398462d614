# VanillaNet-13 on ImageNet-1k, as in Table 7 of the paper: from the weights of VanillaNet-12.
_base_ = './vanillanet-12_8xb128_in1k.py'

pretrained = 'work_dirs/vanillanet-12_8xb128_in1k/epoch_300.pth'

model = dict(backbone=dict(arch='13', init_cfg=dict(checkpoint=pretrained, source_arch='12')))
optim_wrapper = dict(
    constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.8),
)
