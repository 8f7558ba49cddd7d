"""datasets/scannet_detection.py in MMEngine's pure-Python style."""
import sys

from mmcv.transforms import LoadImageFromFile, RandomChoice, RandomChoiceResize
from mmdet.datasets import AspectRatioBatchSampler
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomCrop, RandomFlip, Resize
from mmdet.evaluation import CocoMetric
from mmengine.dataset import DefaultSampler

from deit_detr import ScanNetDataset

dataset_type = ScanNetDataset
environ = sys.modules['os'].environ  # mmengine turns `os` itself into a lazy object
data_root = environ.get('DEIT_DATASETS') or environ.get('MMDET_DATASETS') or 'data/scannet-frames/'
backend_args = None

scales = [(size, 1333) for size in range(480, 801, 32)]
train_pipeline = [
    dict(type=LoadImageFromFile, backend_args=backend_args),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=RandomFlip, prob=0.5),
    dict(
        type=RandomChoice,
        transforms=[
            [dict(type=RandomChoiceResize, scales=scales, keep_ratio=True)],
            [
                dict(
                    type=RandomChoiceResize,
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True),
                dict(
                    type=RandomCrop,
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True),
                dict(type=RandomChoiceResize, scales=scales, keep_ratio=True),
            ],
        ]),
    dict(type=PackDetInputs),
]
test_pipeline = [
    dict(type=LoadImageFromFile, backend_args=backend_args),
    dict(type=Resize, scale=(1333, 800), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(
        type=PackDetInputs,
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='scannet_objdet_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
        backend_args=backend_args))
val_dataloader = dict(
    batch_size=1,  # AP depends on the padding of a batch: one image each
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='scannet_objdet_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type=CocoMetric,
    ann_file=data_root.rstrip('/') + '/scannet_objdet_val.json',
    metric='bbox',
    classwise=True,
    backend_args=backend_args)
test_evaluator = val_evaluator

del sys, environ  # every name left here is a field of the config
