"""Conditional DETR (arXiv 2108.06152) on a plain DeiT-tiny: mmdet's class with fused attention in the encoder."""
_base_ = './focal_deit-tiny.py'
embed_dims = 256  # mmdet fixes the encoding of the reference points at this width

conditional_attention = dict(embed_dims=embed_dims, num_heads=8, attn_drop=0.1)
ffn = dict(
    embed_dims=embed_dims, feedforward_channels=2048, num_fcs=2, ffn_drop=0.1, act_cfg=dict(type='ReLU', inplace=True))

model = dict(
    type='FastConditionalDETR',
    data_preprocessor=dict(type='FastDataPreprocessor', non_blocking=True),  # the host does not wait for copies
    num_queries=300,
    neck=dict(
        type='ChannelMapper', in_channels=[192], kernel_size=1, out_channels=embed_dims, act_cfg=None, norm_cfg=None,
        num_outs=1),
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=embed_dims, num_heads=8, dropout=0.1, batch_first=True), ffn_cfg=ffn)),
    decoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(**conditional_attention, cross_attn=False),
            cross_attn_cfg=dict(**conditional_attention, cross_attn=True),
            ffn_cfg=ffn),
        return_intermediate=True),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True),
    bbox_head=dict(type='FastConditionalDETRHead', embed_dims=embed_dims))
