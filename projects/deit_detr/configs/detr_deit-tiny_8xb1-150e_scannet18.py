"""The seed recipe in Pri3D's protocol: 18 classes, no walls or floors, no masks under 1000 pixels."""
_base_ = [
    '../../../configs/_base_/models/detr_deit-tiny.py',
    '../../../configs/_base_/datasets/scannet18_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(bbox_head=dict(num_classes=18))
