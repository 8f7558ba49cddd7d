"""Deformable DETR (arXiv 2010.04159), two-stage with box refinement, on a plain DeiT-tiny and a simple pyramid.

The pyramid is that of arXiv 2203.16527, made from the one map of the ViT.
"""
_base_ = './focal_deit-tiny.py'
embed_dims = 256  # mmdet fixes the encoding of the proposals at 512, twice that
strides = [8, 16, 32]

deformable_attention = dict(embed_dims=embed_dims, num_levels=len(strides), dropout=0.1)
ffn = dict(embed_dims=embed_dims, feedforward_channels=1024, ffn_drop=0.1)

model = dict(
    type='FastDeformableDETR',
    data_preprocessor=dict(type='FastDataPreprocessor', non_blocking=True),  # the host does not wait for copies
    num_queries=300,
    num_feature_levels=len(strides),
    with_box_refine=True,
    as_two_stage=True,
    neck=dict(type='SimpleFPN', in_channels=[192], out_channels=embed_dims, strides=strides),
    encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, dropout=0.1),
            cross_attn_cfg=deformable_attention,
            ffn_cfg=ffn),
        post_norm_cfg=None),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True, offset=-0.5),
    bbox_head=dict(type='FastDeformableDETRHead', embed_dims=embed_dims, sync_cls_avg_factor=True))
