"""LW-DETR with DeiT-base, its backbone trained as in dino_deit-base_8xb2-12e_scannet.py. Not compared on ScanNet."""
_base_ = ['./lw-detr_deit-tiny_8xb4-12e_scannet.py', '../../../configs/_base_/backbones/deit-base.py']
model = dict(backbone=dict(**_base_.backbone, drop_path_rate=0.1), neck=dict(in_channels=[_base_.width] * 4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7, custom_keys=dict(backbone=dict(lr_mult=1.0))))
