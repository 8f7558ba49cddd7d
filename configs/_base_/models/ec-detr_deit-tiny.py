"""EC-DETR (EdgeCrafter's ECDet-S, TMLR 2026) on DeiT-tiny: D-FINE's decoder and DEIM's loss, three strides."""
_base_ = './focal_deit-tiny.py'
embed_dims = 192

model = dict(
    type='ECDETR',
    data_preprocessor=dict(type='FastDataPreprocessor', non_blocking=True),  # the host does not wait for copies
    num_queries=300,
    backbone=dict(
        type='WindowedViT',  # a norm after each map that the neck averages
        window_size=14,
        global_layers=[2, 5, 8, 11],
        out_indices=[10, 11]),
    neck=dict(type='HybridEncoder', in_channels=[192] * 2, out_channels=embed_dims),
    decoder=dict(
        num_layers=4,
        layer_cfg=dict(
            # 0.0 is the default, but mmcv's MultiheadAttention remembers the last value given in the process
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, num_points=(3, 6, 3)),
            ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=512, act_cfg=dict(type='SiLU')))),
    dn_cfg=dict(label_noise_scale=0.5, box_noise_scale=1.0, group_cfg=dict(dynamic=True, num_dn_queries=100)),
    bbox_head=dict(
        type='ECDETRHead',
        embed_dims=embed_dims,
        loss_cls=dict(_delete_=True, type='MatchabilityAwareLoss', gamma=1.5, loss_weight=1.0)),
    test_cfg=dict(max_per_img=300))
