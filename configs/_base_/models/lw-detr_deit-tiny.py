"""LW-DETR (arXiv 2406.03459) on DeiT-tiny: the backbone is the encoder, the decoder has three layers."""
_base_ = './focal_deit-tiny.py'
embed_dims = 192
out_indices = [2, 5, 8, 11]

model = dict(
    type='LWDETR',
    data_preprocessor=dict(type='FastDataPreprocessor', non_blocking=True),  # the host does not wait for copies
    num_queries=100,
    num_groups=13,  # in training; inference uses one
    anchor_size=0.25,  # 0.05 in the paper; most things in a room fill a quarter of the image's width
    backbone=dict(
        type='WindowedViT',
        window_size=14,  # in tokens; 14x14 is the whole image in the weights' pretraining
        global_layers=[2, 5, 8, 11],
        out_indices=out_indices),
    neck=dict(type='LWDETRProjector', in_channels=[192] * len(out_indices), out_channels=embed_dims),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            # 0.0 is the default, but mmcv's MultiheadAttention remembers the last value given in the process
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=6, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=embed_dims, num_heads=6, num_levels=1, num_points=4, dropout=0.0),
            ffn_cfg=dict(
                embed_dims=embed_dims,
                feedforward_channels=1024,
                ffn_drop=0.0,
                act_cfg=dict(type='ReLU')))),  # mmdet's default works in place and copies the hidden layer three times
    bbox_head=dict(
        type='LWDETRHead',
        embed_dims=embed_dims,
        loss_cls=dict(_delete_=True, type='IoUAwareBCELoss', alpha=0.25, gamma=2.0, loss_weight=1.0)))
