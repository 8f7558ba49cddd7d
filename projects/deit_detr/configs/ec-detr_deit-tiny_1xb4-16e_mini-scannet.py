"""A small EC-DETR on MiniScanNet, 16 epochs of 100 steps, minutes on two CPU cores."""
_base_ = [
    '../../../configs/_base_/models/ec-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_16e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(
    num_queries=60,  # an image has 138 tokens, and seldom more than 12 boxes
    anchor_size=0.2,  # most things in a room fill a quarter of the image's width
    neck=dict(strides=(16, 32)),  # of 570 tokens, 60 queries would leave too many without a box to learn
    decoder=dict(num_layers=3, layer_cfg=dict(cross_attn_cfg=dict(num_points=(6, 3)))),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)),
    test_cfg=dict(max_per_img=60))
