"""DINO (arXiv 2203.03605) on a plain DeiT-tiny, its levels made from the one map of the ViT."""
_base_ = './deit-tiny.py'
embed_dims = 256  # mmdet writes 256 into the box encoding of its DINO decoder
num_levels = 2  # strides 16 and 32

deformable_attention = dict(embed_dims=embed_dims, num_levels=num_levels, dropout=0.0)
ffn = dict(embed_dims=embed_dims, feedforward_channels=1024, ffn_drop=0.0)

model = dict(
    type='FastDINO',
    num_queries=300,
    num_feature_levels=num_levels,
    with_box_refine=True,
    as_two_stage=True,
    neck=dict(
        type='ChannelMapper',
        in_channels=[192],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=num_levels),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, dropout=0.0),
            cross_attn_cfg=deformable_attention,
            ffn_cfg=ffn),
        post_norm_cfg=None),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        num_classes=20,
        embed_dims=embed_dims,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100)),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ])),
    test_cfg=dict(max_per_img=100))
