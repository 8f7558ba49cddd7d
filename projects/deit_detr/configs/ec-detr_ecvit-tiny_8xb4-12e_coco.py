"""EC-DETR with ECViT-tiny on COCO, 8 GPUs x 4 images, 12 epochs: for EdgeCrafter's ECDet-S, and to fine-tune it.

    python tools/demo.py ecdet-s-coco room.jpg
    python tools/model_converters/ecdet_to_mmdet.py ecdet_s.pth ecdet-s.pth
    python tools/test.py CONFIG ecdet-s.pth
    python tools/train.py CONFIG --cfg-options load_from=ecdet-s.pth
"""
_base_ = [
    '../../../configs/_base_/models/ec-detr_ecvit-tiny.py',
    '../../../configs/_base_/datasets/coco_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
model = dict(bbox_head=dict(num_classes=80))
# Square images, as in the published training and evaluation.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=(640, 640), keep_ratio=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(640, 640), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=4, pin_memory=True, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=32)
sync_bn = 'torch'  # as published: stem and neck have batch norm, and a GPU has four images

# The published rates.
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, fused=True), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.05))))
