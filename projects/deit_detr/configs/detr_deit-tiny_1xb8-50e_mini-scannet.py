"""The seed recipe's model on MiniScanNet, for a CPU: 400 rendered frames, 50 epochs of 50 steps of 8 images."""
_base_ = [
    '../../../configs/_base_/models/detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=50, val_interval=5)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)]
default_hooks = dict(logger=dict(interval=10))
