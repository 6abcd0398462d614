# Faster R-CNN: the digits' Mask R-CNN without its masks.
_base_ = 'mask_rcnn_vanillanet-6_digits.py'

model = dict(
    type='FasterRCNN',
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
    test_cfg=dict(
        rcnn=dict(
            _delete_=True,
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=30,
        )
    ),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
