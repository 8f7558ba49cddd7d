"""Minutes on a CPU: 16 epochs of 100 steps of 4 images at twice the rate of detr_8e_mini.py, a tenth of it after 14.

The pretrained backbone learns at half the rate of the rest.
"""
_base_ = './detr_8e_mini.py'
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
train_cfg = dict(max_epochs=16, val_interval=4)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(type='MultiStepLR', begin=0, end=16, by_epoch=True, milestones=[14], gamma=0.1),
]
