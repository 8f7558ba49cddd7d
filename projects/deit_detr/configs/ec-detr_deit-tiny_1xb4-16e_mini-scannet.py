"""A small EC-DETR on MiniScanNet, 16 epochs of 100 steps, minutes on two CPU cores."""
_base_ = [
    '../../../configs/_base_/models/ec-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(
    num_queries=60,  # an image has 138 tokens, and seldom more than 12 boxes
    anchor_size=0.2,  # most things in a room fill a quarter of the image's width
    neck=dict(strides=(16, 32)),  # of 570 tokens, 60 queries would leave too many without a box to learn
    decoder=dict(num_layers=3, layer_cfg=dict(cross_attn_cfg=dict(num_points=(6, 3)))),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)),
    test_cfg=dict(max_per_img=60))

# The pretrained backbone learns at half the rate of the rest.
optim_wrapper = dict(
    optimizer=dict(lr=4e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
train_cfg = dict(max_epochs=16, val_interval=4)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(type='MultiStepLR', begin=0, end=16, by_epoch=True, milestones=[12], gamma=0.1),
]
