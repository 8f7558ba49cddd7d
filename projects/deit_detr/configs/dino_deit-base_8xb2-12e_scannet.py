"""DINO with DeiT-base, and with ViTDet's training of a backbone of this size (arXiv 2203.16527).

The backbone's last layer learns as fast as the detector, each layer below 0.7 times as fast as the one above, and whole
layers are left out at random. Not compared with the constant 0.1 on ScanNet.
"""
_base_ = ['./dino_deit-tiny_8xb2-12e_scannet.py', '../../../configs/_base_/backbones/deit-base.py']
model = dict(backbone=dict(**_base_.backbone, drop_path_rate=0.1), neck=dict(in_channels=[_base_.width]))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7, custom_keys=dict(backbone=dict(lr_mult=1.0))))
