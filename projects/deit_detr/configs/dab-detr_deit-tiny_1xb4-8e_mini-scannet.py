"""DAB-DETR on MiniScanNet, with the size and schedule of dino_deit-tiny_1xb4-8e_mini-scannet.py."""
_base_ = [
    '../../../configs/_base_/models/dab-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/mini_scannet_detection.py',
    '../../../configs/_base_/schedules/detr_8e_mini.py',
    '../../../configs/_base_/mini_runtime.py',
]
model = dict(num_queries=100, encoder=dict(num_layers=2), decoder=dict(num_layers=3))
