"""EC-DETR with DeiT-tiny on ScanNet-frames-25k, 8 GPUs x 4 images, 12 epochs."""
_base_ = [
    '../../../configs/_base_/models/ec-detr_deit-tiny.py',
    '../../../configs/_base_/datasets/scannet_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4, pin_memory=True)
auto_scale_lr = dict(base_batch_size=32)
sync_bn = 'torch'  # the neck has batch norm, and a GPU has four images

# Twice the schedule's batch, so twice its rate. The backbone has to learn its windows: half of that.
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
