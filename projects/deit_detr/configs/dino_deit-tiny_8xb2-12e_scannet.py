"""DINO with DeiT-tiny on ScanNet-frames-25k, 8 GPUs x 2 images, 12 epochs."""
_base_ = [
    '../../../configs/_base_/models/dino-3scale_deit-tiny.py',
    '../../../configs/_base_/datasets/scannet_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=2, pin_memory=True)
