"""Two-stage Deformable DETR with DeiT-tiny on ScanNet-frames-25k, 8 GPUs x 2 images, 12 epochs."""
_base_ = [
    '../../../configs/_base_/models/deformable-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/scannet_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=2, pin_memory=True)
# As in the paper: the layers that choose the sampling points learn slowly.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(sampling_offsets=dict(lr_mult=0.1))))
