"""The config of docs/works_with.md, with the base beside this file, and narrow."""

from mmengine.config import read_base

from mmvanilla import VanillaNet
from mmvanilla.engine import DeepTrainingHook

with read_base():
    from .retinanet_r50_fpn import *  # noqa: F403

model.merge(  # noqa: F405
    dict(
        backbone=dict(_delete_=True, type=VanillaNet, arch='13', out_indices=(1, 2, 3)),
        neck=dict(in_channels=[1024, 2048, 4096], start_level=0),
    )
)
custom_hooks = [dict(type=DeepTrainingHook, decay_epochs=4)]

# Not on the page
custom_hooks[0].update(decay_epochs=2)
model.backbone.widen_factor = 1 / 64  # noqa: F405
model.neck.merge(dict(in_channels=[16, 32, 64], out_channels=8))  # noqa: F405
model.bbox_head.merge(  # noqa: F405
    dict(num_classes=10, in_channels=8, stacked_convs=1, feat_channels=8)
)
