"""EC-DETR with ECViT-tiny on COCO, 8 GPUs x 4 images, 12 epochs: for EdgeCrafter's ECDet-S, and to fine-tune it.

    python tools/demo.py ecdet-s-coco room.jpg
    python tools/model_converters/ecdet_to_mmdet.py ecdet_s.pth ecdet-s.pth
    python tools/test.py CONFIG ecdet-s.pth
    python tools/train.py CONFIG --cfg-options load_from=ecdet-s.pth
"""
_base_ = [
    '../../../configs/_base_/models/ec-detr_deit-tiny.py',
    '../../../configs/_base_/backbones/ecvit-tiny.py',
    '../../../configs/_base_/datasets/coco_square_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(backbone=dict(_delete_=True, **_base_.backbone), bbox_head=dict(num_classes=80))
auto_scale_lr = dict(base_batch_size=32)
sync_bn = 'torch'  # as published: stem and neck have batch norm, and a GPU has four images

# The published rates.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.05))))
