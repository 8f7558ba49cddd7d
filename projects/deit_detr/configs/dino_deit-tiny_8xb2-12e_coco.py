"""DINO with DeiT-tiny on COCO, 8 GPUs x 2 images, 12 epochs; docs/your_own_data.md builds on it."""
_base_ = [
    '../../../configs/_base_/models/dino_deit-tiny.py',
    '../../../configs/_base_/datasets/coco_detection.py',
    '../../../configs/_base_/schedules/detr_150e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(bbox_head=dict(num_classes=80))
auto_scale_lr = dict(base_batch_size=16)

# The schedule of mmdet's DINO.
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[11], gamma=0.1)
]
