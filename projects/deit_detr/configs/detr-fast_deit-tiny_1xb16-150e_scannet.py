"""The fast twin for one GPU, 16 images a step: one size per batch, no padding, five shapes. Not run on a GPU yet.

    python tools/train.py CONFIG --amp --auto-scale-lr --cfg-options model.compile.dynamic=False

Mixed precision and compiling are options of the command, because mmengine's AmpOptimWrapper cannot be built without a
GPU. `--auto-scale-lr` doubles the learning rates for 16 images instead of 8. Without it they stay at 1e-4 and 1e-5,
which mmdet's DETR uses for 16.
"""
_base_ = './detr-fast_deit-tiny_8xb1-150e_scannet.py'
# 480x640, 560x752, 640x864, 720x960, 800x1072; with two more in validation, PyTorch's limit is eight shapes
model = dict(
    data_preprocessor=dict(batch_augments=[dict(type='BatchRandomResize', scales=[0.6, 0.7, 0.8, 0.9, 1.0])]))

fit = dict(type='Resize', scale=(1072, 800), keep_ratio=False)  # all frames are 4:3, within 1 %
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [fit],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_size=(512, 384), allow_negative_crop=True),  # also 4:3
                fit,
            ],
        ]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    batch_sampler=dict(drop_last=True),  # a smaller batch would be another shape
    dataset=dict(pipeline=train_pipeline))
