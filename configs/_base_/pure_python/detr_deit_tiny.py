"""models/detr_deit-tiny.py in MMEngine's pure-Python style."""
import sys

from mmdet.models import (
    DETR,
    ChannelMapper,
    CrossEntropyLoss,
    DetDataPreprocessor,
    DETRHead,
    GIoULoss,
    L1Loss,
)
from mmdet.models.task_modules import BBoxL1Cost, ClassificationCost, HungarianAssigner, IoUCost
from mmpretrain.models import VisionTransformer
from torch.nn import ReLU

embed_dims = 192  # of the transformer and of DeiT-tiny: the neck between them keeps the width

attention = dict(embed_dims=embed_dims, num_heads=8, dropout=0.1, batch_first=True)
ffn = dict(
    embed_dims=embed_dims,
    feedforward_channels=2048,
    num_fcs=2,
    ffn_drop=0.1,
    act_cfg=dict(type=ReLU, inplace=True))

model = dict(
    type=DETR,
    num_queries=100,
    data_preprocessor=dict(
        type=DetDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1),
    backbone=dict(
        type=VisionTransformer,
        arch='deit-tiny',
        # The checkpoint's size. Any other size would resize the position embedding while loading, which mmpretrain
        # cannot do without a class token. The forward pass interpolates it to any input size.
        img_size=224,
        patch_size=16,
        out_indices=-1,
        with_cls_token=False,
        out_type='featmap',
        init_cfg=dict(
            type='Pretrained',  # given the class itself, the ViT draws pos_embed anew after loading
            checkpoint=sys.modules['os'].environ.get('DEIT_CHECKPOINT') or (  # mmengine makes `os` a lazy object
                'https://download.openmmlab.com/mmclassification/v0/deit/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth'),
            prefix='backbone.')),
    neck=dict(
        type=ChannelMapper,
        in_channels=[192],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        return_intermediate=True),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True),
    bbox_head=dict(
        type=DETRHead,
        num_classes=20,
        embed_dims=embed_dims,
        loss_cls=dict(
            type=CrossEntropyLoss,
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0),
        loss_bbox=dict(type=L1Loss, loss_weight=5.0),
        loss_iou=dict(type=GIoULoss, loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(
            type=HungarianAssigner,
            match_costs=[
                dict(type=ClassificationCost, weight=1.0),
                dict(type=BBoxL1Cost, weight=5.0, box_format='xywh'),
                dict(type=IoUCost, iou_mode='giou', weight=2.0),
            ])),
    test_cfg=dict(max_per_img=100))

del sys  # every name left here is a field of the config
