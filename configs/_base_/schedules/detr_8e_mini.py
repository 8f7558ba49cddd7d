"""Minutes on a CPU: 8 epochs of 100 steps of 4 images, the learning rate drops to a tenth after 6.

So few steps need a higher rate, and the backbone learns as fast as the rest, pretrained or not.
"""
_base_ = './detr_150e.py'
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
train_cfg = dict(max_epochs=8, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=8, by_epoch=True, milestones=[6], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=4)
