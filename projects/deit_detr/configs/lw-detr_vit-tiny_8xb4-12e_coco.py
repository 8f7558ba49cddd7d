"""LW-DETR-tiny on COCO, 8 GPUs x 4 images, 12 epochs: for the published weights, and to fine-tune them.

    python tools/model_converters/lw_detr_to_mmdet.py LWDETR_tiny_60e_coco.pth lw-detr-tiny.pth
    python tools/test.py CONFIG lw-detr-tiny.pth
    python tools/train.py CONFIG --cfg-options load_from=lw-detr-tiny.pth
"""
_base_ = [
    '../../../configs/_base_/models/lw-detr_vit-tiny.py',
    '../../../configs/_base_/datasets/coco_square_detection.py',
    '../../../configs/_base_/schedules/detr_12e.py',
    '../../../configs/_base_/default_runtime.py',
]
# Square images, as in the published training and evaluation: sixteen windows of 10x10 tokens at 640 pixels.
squares = dict(type='RandomChoiceResize', scales=[(side, side) for side in range(448, 897, 64)], keep_ratio=False)
enlarged = dict(type='RandomChoiceResize', scales=[(side, 1333) for side in (400, 500, 600)], keep_ratio=True)
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[squares], [enlarged, crop, squares]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
auto_scale_lr = dict(base_batch_size=32)

# The published rates. Each layer of the backbone learns slower than the one above.
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(
        layer_decay_rate=0.8, custom_keys=dict(backbone=dict(lr_mult=0.735), decoder=dict(lr_mult=0.7))))
