# Data and schedule of the scaled ablations. The data, handwritten digits in clutter, are made by
# tools/dataset_converters/digits_to_folders.py --cluttered. The schedule takes minutes on one core:
# 100 iterations per epoch, 3 epochs instead of the 100 on ImageNet.
_base_ = './default_runtime.py'

num_classes = 10
data_preprocessor = dict(num_classes=num_classes, mean=[128.0] * 3, std=[64.0] * 3, to_rgb=False)
dataset = dict(
    type='CustomDataset',
    data_root='data/digits_cluttered',
    metainfo=dict(classes=[str(digit) for digit in range(num_classes)]),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(dataset, data_prefix='train'),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, data_prefix='val'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

max_epochs = 3
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', end=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=3, max_keep_ckpts=1))
custom_hooks = [dict(type='mmvanilla.DeepTrainingHook', by_epoch=False, decay_iters=0)]
randomness = dict(seed=0)
