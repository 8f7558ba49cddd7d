"""LW-DETR with DeiT-small: only the backbone and the width that the neck reads differ."""
_base_ = './lw-detr_deit-tiny_8xb4-12e_scannet.py'
model = dict(
    backbone=dict(
        arch='deit-small',
        init_cfg=dict(
            checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth}}')),
    neck=dict(in_channels=[384] * 4))
