"""The quickstart's recipe: a small LW-DETR on MiniScanNet, 16 epochs of 100 steps, minutes on two CPU cores."""
_base_ = [
    '../../../configs/_base_/models/lw-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_16e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(
    num_queries=60,  # an image has 108 tokens, and seldom more than 12 boxes
    num_groups=4,
    decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))),
    test_cfg=dict(max_per_img=60))
