# What the detection and segmentation configs on handwritten digits share: the data, which
# tools/dataset_converters/digits_to_coco.py makes, and a schedule of minutes on a laptop's CPU.
# Its names occur in no other base, as in vanillanet13_dense.py.
digits_root = 'data/digits/'
digits_classes = (
    *('zero', 'one', 'two', 'three', 'four'),
    *('five', 'six', 'seven', 'eight', 'nine'),
)
digits = dict(data_root=digits_root, metainfo=dict(classes=digits_classes))
digits_to_train = dict(digits, filter_cfg=dict(_delete_=True, filter_empty_gt=True))
digits_train_boxes = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape')),
]
digits_test_boxes = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(256, 256), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
with_masks = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
digits_train_masks = [digits_train_boxes[0], with_masks, digits_train_boxes[2]]
digits_test_masks = [*digits_test_boxes[:2], with_masks, digits_test_boxes[3]]
digits_evaluator = dict(ann_file=digits_root + 'annotations/instances_val2017.json')

digits_backbone = dict(
    arch='6', widen_factor=0.09375, act_num=3, norm_cfg=dict(type='BN'), init_cfg=None
)
# ResNet-18 at 3/8 of the width, to compare with, and how it is optimized.
digits_resnet18 = dict(
    _delete_=True, type='ResNet', depth=18, base_channels=24, stem_channels=24, norm_eval=False
)
digits_resnet18_optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0),
)
digits_optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True), optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10)
)
digits_warmup = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50)
digits_cosine = dict(
    type='CosineAnnealingLR', eta_min=1e-5, begin=0, by_epoch=True, convert_to_iter_based=True
)
digits_hooks = dict(logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
