"""LW-DETR-tiny as published (Atten4Vis/LW-DETR), for its converted weights: 80 classes of COCO."""
_base_ = './lw-detr_deit-tiny.py'
embed_dims = 256
out_indices = [1, 3, 5]

model = dict(
    anchor_size=0.05,
    learn_deltas=True,
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=192, num_layers=6, num_heads=12, feedforward_channels=768),
        num_windows=4,  # in each direction, at every image size
        global_layers=out_indices,
        out_indices=out_indices,
        final_norm=False,
        layer_scale_init_value=0.1,
        init_cfg=None),
    neck=dict(in_channels=[192] * len(out_indices), out_channels=embed_dims, use_c2f=True),
    decoder=dict(
        lite_refine=True,
        final_norm=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8),
            cross_attn_cfg=dict(embed_dims=embed_dims, num_heads=16, num_points=2),
            ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=2048))),
    bbox_head=dict(embed_dims=embed_dims, num_classes=80))
