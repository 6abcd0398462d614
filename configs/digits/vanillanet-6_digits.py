# A narrow VanillaNet-6 on handwritten digits, which tools/dataset_converters/digits_to_folders.py
# makes; in minutes on a laptop's CPU, with the parts of the ImageNet recipe: λ, LAMB, averaging,
# mixed and smoothed labels, RandAugment (without the colours) and random erasing.
_base_ = '../imagenet/vanillanet-5_8xb128_in1k.py'

num_classes = 10
data_preprocessor = dict(num_classes=num_classes)
model = dict(
    backbone=dict(arch='6', widen_factor=0.0625),
    head=dict(num_classes=num_classes, in_channels=256),
)

shear = dict(type='Shear', magnitude_range=(0, 0.3))
translate = dict(type='Translate', magnitude_range=(0, 0.25))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandAugment',
        policies=[
            dict(type='Rotate', magnitude_range=(0, 30)),
            dict(shear, direction='horizontal'),
            dict(shear, direction='vertical'),
            dict(translate, direction='horizontal'),
            dict(translate, direction='vertical'),
        ],
        num_policies=2,
        magnitude_level=7,
        magnitude_std=0.5,
        hparams=dict(pad_val=0, interpolation='bicubic'),
    ),
    dict(type='RandomErasing', erase_prob=0.25, mode='rand', max_area_ratio=1 / 3),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(
    _delete_=True,
    type='CustomDataset',
    data_root='data/digits_folders',
    metainfo=dict(classes=[str(digit) for digit in range(num_classes)]),
)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(dataset, data_prefix='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=60, num_workers=1, dataset=dict(dataset, data_prefix='val', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))

max_epochs = 21
train_cfg = dict(max_epochs=max_epochs)
lr = 1e-2
optim_wrapper = dict(optimizer=dict(lr=lr, weight_decay=0.05))
warmup, cosine = _base_.param_scheduler
param_scheduler = [
    dict(warmup, end=2),
    dict(cosine, begin=2, end=max_epochs, eta_min_ratio=1e-6 / lr),
]
custom_hooks = [
    dict(type='mmvanilla.DeepTrainingHook', decay_epochs=max_epochs // 3),
    # Evaluates the averaged weights, and the trained ones beside them.
    dict(type='EMAHook', momentum=0.03, update_buffers=True, evaluate_on_origin=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
