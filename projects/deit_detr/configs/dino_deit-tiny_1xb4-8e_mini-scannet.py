"""A small DINO on MiniScanNet, 8 epochs of 100 steps, minutes on two CPU cores.

DETR itself needs hundreds of epochs before it finds more than walls and floors. DINO's denoising queries and deformable
attention find furniture after a few hundred steps.
"""
_base_ = [
    '../../../configs/_base_/models/dino_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(
    num_queries=100,
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)))
