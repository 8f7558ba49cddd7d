"""DINO with DeiT-tiny on COCO, 8 GPUs x 2 images, 12 epochs; docs/data.md builds on it."""
_base_ = [
    '../../../configs/_base_/models/dino-3scale_deit-tiny.py',
    '../../../configs/_base_/datasets/coco_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(bbox_head=dict(num_classes=80))
