# Training as in Table 7; the models change the learning rate, the weight decay and the averaging.
lr = 3.5e-3
optim_wrapper = dict(
    # LAMB clips the gradients to a global norm of 1; eps is that of the authors' LAMB.
    optimizer=dict(type='Lamb', lr=lr, weight_decay=0.3, betas=(0.9, 0.999), eps=1e-8),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    # The paper starts from 0, but mmengine divides by the factor, so it is small instead.
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    # Down to 1e-6, scaled like the layer's learning rate.
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / lr,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)

custom_hooks = [
    dict(type='mmvanilla.DeepTrainingHook', decay_epochs=100),
    # Decay 0.99996, as in the authors' commands (the paper prints 0.999996). The batch norms'
    # statistics are averaged with the weights that they belong to. A short run needs a larger
    # momentum: this one averages over 25,000 iterations.
    dict(type='EMAHook', momentum=4e-5, update_buffers=True),
]
