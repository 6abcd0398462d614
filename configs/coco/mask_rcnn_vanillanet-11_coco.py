# Mask R-CNN with VanillaNet-11 on COCO, as in Appendix B of the paper, with its series number 3.
_base_ = '../mask_rcnn_vanillanet13.py'

model = dict(
    backbone=dict(arch='11', act_num=3, init_cfg=dict(checkpoint='checkpoints/vanillanet_11.pth'))
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8), optimizer=dict(lr=1.4e-4))
