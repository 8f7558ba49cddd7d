"""COCO 2017, 80 classes, with the pipelines of the ScanNet recipes, which come from mmdet's DETR on COCO.

docs/data.md replaces it by another data set in COCO's format.
"""
_base_ = './scannet_detection.py'
dataset_type = 'CheckedCocoDataset'  # mmdet's CocoDataset with a check of the annotation file
data_root = '{{$COCO_ROOT:data/coco/}}'

train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/')))
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/')))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root.rstrip('/') + '/annotations/instances_val2017.json')
test_evaluator = val_evaluator
