"""The seed recipe with DeiT-base: only the backbone and the width that the neck reads differ."""
_base_ = './detr_deit-tiny_8xb1-150e_scannet.py'
model = dict(
    backbone=dict(
        arch='deit-base',
        init_cfg=dict(
            checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-base_pt-16xb64_in1k_20220216-db63c16c.pth}}')),
    neck=dict(in_channels=[768]))
