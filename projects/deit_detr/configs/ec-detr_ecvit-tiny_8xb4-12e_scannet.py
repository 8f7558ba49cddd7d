"""EC-DETR with ECViT-tiny on ScanNet-frames-25k, 8 GPUs x 4 images, 12 epochs.

Without weights everything starts at random. For those of EdgeCrafter, convert a file of its detector or of its ECViT
with tools/model_converters/ecdet_to_mmdet.py, and set `load_from` to the result (docs/migrate.md).
"""
_base_ = [
    '../../../configs/_base_/models/ec-detr_ecvit-tiny.py',
    '../../../configs/_base_/datasets/scannet_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4, pin_memory=True)
auto_scale_lr = dict(base_batch_size=32)
sync_bn = 'torch'  # stem and neck have batch norm, and a GPU has four images
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))))
