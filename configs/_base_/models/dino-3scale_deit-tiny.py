"""DINO with a simple pyramid (arXiv 2203.16527): as dino_deit-tiny.py, with a finer level for small things."""
_base_ = './dino_deit-tiny.py'
strides = [8, 16, 32]

levels = dict(num_levels=len(strides))
model = dict(
    num_feature_levels=len(strides),
    neck=dict(_delete_=True, type='SimpleFPN', in_channels=[192], out_channels=256, strides=strides),
    encoder=dict(layer_cfg=dict(self_attn_cfg=levels)),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=levels)))
