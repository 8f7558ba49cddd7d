"""DINO (arXiv 2203.03605): two-stage Deformable DETR with denoising queries and without dropout."""
_base_ = './deformable-detr_deit-tiny.py'
model = dict(
    type='FastDINO',
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0))),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.0), cross_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0))),
    positional_encoding=dict(offset=0.0, temperature=20),
    bbox_head=dict(type='FastDINOHead', loss_cls=dict(loss_weight=1.0)),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100)))
