"""ScanNet-frames-25k in Pri3D's protocol (arXiv 2104.11225): 18 classes, no wall or floor, no mask under 1000 pixels.

`tools/dataset_converters/scannet2coco.py --classes 18 --out-dir data/scannet-frames-18` writes it. Training selects its
best checkpoint by COCO's AP. Testing also computes Pri3D's AP, the one to compare with published numbers.
"""
_base_ = './scannet_detection.py'
data_root = '{{$SCANNET18_ROOT:data/scannet-frames-18/}}'

train_dataloader = dict(dataset=dict(type='ScanNet18Dataset', data_root=data_root))
val_dataloader = dict(dataset=dict(type='ScanNet18Dataset', data_root=data_root))
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root.rstrip('/') + '/scannet_objdet_val.json')
test_evaluator = [
    dict(type='CocoMetric', ann_file=val_evaluator['ann_file'], metric='bbox', classwise=True),
    dict(type='Pri3DMetric', ann_file=val_evaluator['ann_file'], metric='bbox'),
]
