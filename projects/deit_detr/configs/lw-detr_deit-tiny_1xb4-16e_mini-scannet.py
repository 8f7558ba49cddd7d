"""The quickstart's recipe: a small LW-DETR on MiniScanNet, 16 epochs of 100 steps, minutes on two CPU cores."""
_base_ = [
    '../../../configs/_base_/models/lw-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(
    num_queries=60,  # an image has 108 tokens, and seldom more than 12 boxes
    num_groups=4,
    decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    test_cfg=dict(max_per_img=60))

# The pretrained backbone learns at half the rate of the rest.
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
train_cfg = dict(max_epochs=16, val_interval=4)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(type='MultiStepLR', begin=0, end=16, by_epoch=True, milestones=[12], gamma=0.1),
]
