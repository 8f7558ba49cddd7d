"""COCO 2017 as published detectors take it: every image is stretched to 640x640, 4 images on a GPU."""
_base_ = './coco_detection.py'
square = dict(type='Resize', scale=(640, 640), keep_ratio=False)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    square,
    dict(type='PackDetInputs'),
]
test_pipeline = [_base_.test_pipeline[0], square, *_base_.test_pipeline[2:]]
train_dataloader = dict(batch_size=4, pin_memory=True, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
