"""The quickstart's recipe: a small LW-DETR on MiniScanNet, 16 epochs of 100 steps, minutes on two CPU cores."""
_base_ = [
    '../../../configs/_base_/models/lw-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(
    num_queries=60,  # an image has 108 tokens, and seldom more than 12 boxes
    num_groups=4,
    decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    test_cfg=dict(max_per_img=60))
train_dataloader = dict(batch_size=4)

# The pretrained backbone moves at half the rate of the rest.
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[12], gamma=0.1),
]
default_hooks = dict(
    logger=dict(interval=10),
    visualization=dict(score_thr=0.2))  # after so few steps scores stay low
