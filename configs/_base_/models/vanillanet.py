# Classifier of the paper. Its loss (Table 7), binary cross entropy on targets smoothed by 0.1, the
# mean over images and classes, is the head's own default, as is the dropout of 0.05.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvanilla.VanillaNet', arch='5'),
    head=dict(type='mmvanilla.VanillaNetClsHead', num_classes=1000, in_channels=4096),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.4), dict(type='CutMix', alpha=1.0)]),
)
