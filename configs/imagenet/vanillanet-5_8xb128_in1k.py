# VanillaNet-5 on ImageNet-1k, as in Table 7 of the paper, for 8 GPUs with 128 images each.
_base_ = [
    '../_base_/models/vanillanet.py',
    '../_base_/datasets/imagenet_bs128_vanillanet_224.py',
    '../_base_/schedules/imagenet_bs1024_lamb_vanillanet.py',
    '../_base_/default_runtime.py',
]

model = dict(
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)])
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.35))
