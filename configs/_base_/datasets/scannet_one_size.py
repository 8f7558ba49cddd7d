"""Training batches of one size without padding, five sizes in all, for one GPU with many images a step.

MMEngine refuses two base files that set the same field. So these are variables, and a recipe that inherits from its
8-GPU twin puts them in place:

    model = dict(data_preprocessor=dict(batch_augments=_base_.one_size_augments))
    train_dataloader = dict(batch_size=..., **_base_.one_size_dataloader)
"""
# 480x640, 560x752, 640x864, 720x960, 800x1072
one_size_augments = [dict(type='BatchRandomResize', scales=[0.6, 0.7, 0.8, 0.9, 1.0])]

fit = dict(type='Resize', scale=(1072, 800), keep_ratio=False)  # all frames are 4:3, within 1 %
one_size_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
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
    dict(type='RandomFlip', prob=0.5),  # last: resizing a flipped view takes twice the time
    dict(type='PackDetInputs'),
]
one_size_dataloader = dict(
    num_workers=8,
    batch_sampler=dict(drop_last=True),  # a smaller batch would be another shape
    dataset=dict(pipeline=one_size_pipeline))
