"""The seed recipe with DeiT-base: only the backbone and the width that the neck reads differ."""
_base_ = ['./detr_deit-tiny_8xb1-150e_scannet.py', '../../../configs/_base_/backbones/deit-base.py']
model = dict(backbone=_base_.backbone, neck=dict(in_channels=[_base_.width]))
