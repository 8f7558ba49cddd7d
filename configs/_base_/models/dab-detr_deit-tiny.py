"""DAB-DETR (arXiv 2201.12329): Conditional DETR whose queries are boxes, without dropout and with PReLU.

The width stays 256. 192 would also work, but not in mmdet's other detectors, and all of them are compared.
"""
_base_ = './conditional-detr_deit-tiny.py'
attention_dropout = dict(attn_drop=0.0, proj_drop=0.0)

model = dict(
    type='FastDABDETR',
    encoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0, act_cfg=dict(_delete_=True, type='PReLU')))),
    decoder=dict(
        query_dim=4,
        query_scale_type='cond_elewise',
        with_modulated_hw_attn=True,
        layer_cfg=dict(
            self_attn_cfg=attention_dropout,
            cross_attn_cfg=attention_dropout,
            ffn_cfg=dict(ffn_drop=0.0, act_cfg=dict(_delete_=True, type='PReLU')))),
    positional_encoding=dict(temperature=20),
    bbox_head=dict(type='FastDABDETRHead', loss_cls=dict(loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(match_costs=[dict(type='FocalLossCost', weight=2.0, eps=1e-8), *_base_.box_costs])))
