# What detection and segmentation with VanillaNet-13 share. Its names occur in no other base, and
# the configs refer to them, so it can be combined with the bases of any model.

# The authors' distilled ImageNet weights with series number 4, from
# https://github.com/huawei-noah/VanillaNet/releases/download/ckpt/vanillanet_13_act_num_4_kd_pretrain.pth
# None trains from scratch (as --cfg-options model.backbone.init_cfg=None does).
distilled_weights = 'checkpoints/vanillanet_13_act_num_4_kd_pretrain.pth'

vanillanet13 = dict(
    _delete_=True,
    type='mmvanilla.VanillaNet',
    arch='13',
    act_num=4,
    norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='Pretrained', checkpoint=distilled_weights),
)
adamw = dict(_delete_=True, type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
# As in the authors' repository: one learning rate for every two blocks, lower in earlier ones.
layer_decay = dict(
    constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.6, blocks_per_layer=2),
)
