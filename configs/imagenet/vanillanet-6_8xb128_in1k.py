# VanillaNet-6 on ImageNet-1k, as in Table 7 of the paper.
_base_ = './vanillanet-5_8xb128_in1k.py'

model = dict(
    backbone=dict(arch='6'),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.15), dict(type='CutMix', alpha=1.0)]),
)

lr = 4.8e-3
optim_wrapper = dict(
    constructor='mmvanilla.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, decay_rate=0.8),
    optimizer=dict(lr=lr, weight_decay=0.35),  # the authors' command has weight decay 0.32
)
warmup, cosine = _base_.param_scheduler
param_scheduler = [warmup, dict(cosine, eta_min_ratio=1e-6 / lr)]
