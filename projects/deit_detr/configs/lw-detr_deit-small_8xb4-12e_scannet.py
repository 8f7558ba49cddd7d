"""LW-DETR with DeiT-small: only the backbone and the width that the neck reads differ."""
_base_ = ['./lw-detr_deit-tiny_8xb4-12e_scannet.py', '../../../configs/_base_/backbones/deit-small.py']
model = dict(backbone=_base_.backbone, neck=dict(in_channels=[_base_.width] * 4))
