"""DETR (arXiv 2005.12872) on a plain DeiT-tiny: plain mmdet and mmpretrain classes."""
_base_ = './focal_deit-tiny.py'
embed_dims = 192  # of the transformer and of DeiT-tiny: the neck between them keeps the width

attention = dict(embed_dims=embed_dims, num_heads=8, dropout=0.1, batch_first=True)
ffn = dict(
    embed_dims=embed_dims, feedforward_channels=2048, num_fcs=2, ffn_drop=0.1, act_cfg=dict(type='ReLU', inplace=True))

model = dict(
    type='DETR',
    num_queries=100,
    neck=dict(
        type='ChannelMapper', in_channels=[192], kernel_size=1, out_channels=embed_dims, act_cfg=None, norm_cfg=None,
        num_outs=1),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        return_intermediate=True),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True),
    bbox_head=dict(
        type='DETRHead',
        embed_dims=embed_dims,
        # a softmax over the classes and "no object", where the later detectors have the focal loss
        loss_cls=dict(
            _delete_=True,
            type='CrossEntropyLoss',
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0)),
    train_cfg=dict(assigner=dict(match_costs=[dict(type='ClassificationCost', weight=1.0), *_base_.box_costs])))
