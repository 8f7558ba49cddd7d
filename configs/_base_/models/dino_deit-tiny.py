"""DINO with two levels, strides 16 and 32, for small images."""
_base_ = './dino-3scale_deit-tiny.py'
levels = dict(num_levels=2)

model = dict(
    num_feature_levels=2,
    neck=dict(
        _delete_=True, type='ChannelMapper', in_channels=[192], kernel_size=1, out_channels=256, act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32), num_outs=2),
    encoder=dict(layer_cfg=dict(self_attn_cfg=levels)),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=levels)))
