# Faster R-CNN: the digits' Mask R-CNN without its masks.
_base_ = 'mask_rcnn_vanillanet-6_digits.py'

model = dict(type='FasterRCNN', roi_head=dict(mask_roi_extractor=None, mask_head=None))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
