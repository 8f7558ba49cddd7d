"""DAB-DETR (arXiv 2201.12329) on a plain DeiT-tiny: mmdet's class with fused attention in the encoder."""
_base_ = './deit-tiny.py'
embed_dims = 256  # 192 works, too; mmdet's Conditional, Deformable DETR and DINO do not, and all are to compare

conditional_attention = dict(embed_dims=embed_dims, num_heads=8, attn_drop=0.0, proj_drop=0.0)
ffn = dict(
    embed_dims=embed_dims,
    feedforward_channels=2048,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type='PReLU'))

model = dict(
    type='FastDABDETR',
    num_queries=300,
    neck=dict(
        type='ChannelMapper',
        in_channels=[192],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1),
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, dropout=0.0, batch_first=True),
            ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        query_dim=4,
        query_scale_type='cond_elewise',
        with_modulated_hw_attn=True,
        layer_cfg=dict(
            self_attn_cfg=dict(**conditional_attention, cross_attn=False),
            cross_attn_cfg=dict(**conditional_attention, cross_attn=True),
            ffn_cfg=ffn),
        return_intermediate=True),
    positional_encoding=dict(num_feats=embed_dims // 2, temperature=20, normalize=True),
    bbox_head=dict(
        type='DABDETRHead',
        num_classes=20,
        embed_dims=embed_dims,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0, eps=1e-8),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ])),
    test_cfg=dict(max_per_img=100))
