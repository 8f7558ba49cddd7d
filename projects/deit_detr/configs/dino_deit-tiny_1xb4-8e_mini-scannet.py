"""The quickstart's recipe: a small DINO on MiniScanNet, 8 epochs of 100 steps, minutes on two CPU cores.

DETR itself needs hundreds of epochs before it finds more than walls and floors; DINO's denoising queries and
deformable attention find furniture after a few hundred steps.
"""
_base_ = [
    '../../../configs/_base_/models/dino_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(
    num_queries=100,
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=4)

# Only 800 steps: a higher rate, and the backbone moves as fast as the rest, pretrained or not.
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[6], gamma=0.1),
]
default_hooks = dict(
    logger=dict(interval=10),
    visualization=dict(score_thr=0.2))  # after so few steps the focal loss keeps scores low
