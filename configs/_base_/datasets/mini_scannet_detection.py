"""MiniScanNet, the rendered rooms of tools/dataset_converters/make_mini_scannet.py, small enough for a CPU."""
_base_ = './scannet_detection.py'
data_root = '{{$MINI_SCANNET_ROOT:data/mini-scannet/}}'
scale = (192, 144)  # 12x9 patches; frames are 320x240

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip('/') + '/scannet_objdet_val.json')
test_evaluator = val_evaluator
