"""What the detectors share: DeiT-tiny, 20 classes, the focal loss, and matching by class, L1 distance and GIoU."""
_base_ = '../backbones/deit-tiny.py'
box_costs = [
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]

model = dict(
    bbox_head=dict(
        num_classes=20,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(type='HungarianAssigner', match_costs=[dict(type='FocalLossCost', weight=2.0), *box_costs])),
    test_cfg=dict(max_per_img=100))
