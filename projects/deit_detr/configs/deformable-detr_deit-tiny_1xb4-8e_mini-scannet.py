"""Two-stage Deformable DETR on MiniScanNet, with the size and schedule of dino_deit-tiny_1xb4-8e_mini-scannet.py."""
_base_ = [
    '../../../configs/_base_/models/deformable-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
levels = dict(num_levels=2)  # without the finest, which would double the time of a step
model = dict(
    num_queries=100,
    num_feature_levels=2,
    neck=dict(strides=[16, 32]),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=levels)),
    decoder=dict(num_layers=3, layer_cfg=dict(cross_attn_cfg=levels)))
