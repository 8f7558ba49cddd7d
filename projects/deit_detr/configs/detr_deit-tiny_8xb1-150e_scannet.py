"""The seed recipe: DETR with DeiT-tiny on ScanNet-frames-25k, 8 GPUs x 1 image, 150 epochs.

The mmdet 2.x recipe of the same name, number for number; docs/migrate.md holds the comparison.
"""
_base_ = [
    '../../../configs/_base_/models/detr_deit-tiny.py',
    '../../../configs/_base_/datasets/scannet_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
