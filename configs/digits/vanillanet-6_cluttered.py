# VanillaNet-6 at a 32nd of the width, for the scaled ablations (Tables 1 to 3): with LAMB and
# for three times as long as the other networks, both as on ImageNet. With cross entropy: binary
# cross entropy spends most of so short a run on the biases of ten unlikely classes.
_base_ = '../_base_/cluttered_digits_recipe.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmvanilla.VanillaNet', arch='6', widen_factor=0.03125),
    head=dict(
        type='mmvanilla.VanillaNetClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)

max_epochs = 9
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(type='Lamb', lr=1e-2))
warmup, cosine = _base_.param_scheduler
param_scheduler = [warmup, dict(cosine, end=max_epochs)]
# A third of the iterations, as the paper's 100 epochs of 300.
custom_hooks = [dict(_base_.custom_hooks[0], decay_iters=300)]
