"""The seed recipe's model on MiniScanNet, for a CPU: 400 rendered frames, 50 steps of 8 images an epoch."""
_base_ = [
    '../../../configs/_base_/models/detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=8)
auto_scale_lr = dict(base_batch_size=8)

max_epochs = 50
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[40], gamma=0.1)
]
default_hooks = dict(logger=dict(interval=10))
