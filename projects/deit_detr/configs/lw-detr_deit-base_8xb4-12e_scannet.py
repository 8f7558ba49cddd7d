"""LW-DETR with DeiT-base: the backbone, and how it is trained."""
_base_ = './lw-detr_deit-tiny_8xb4-12e_scannet.py'
model = dict(
    backbone=dict(
        arch='deit-base',
        drop_path_rate=0.1,
        init_cfg=dict(
            checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-base_pt-16xb64_in1k_20220216-db63c16c.pth}}')),
    neck=dict(in_channels=[768] * 4))
# As DINO's with DeiT-base: the last layer learns as fast as the detector, each one below it 0.7 times as fast as the
# one above, and whole layers are left out at random. Not compared on ScanNet.
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.7, custom_keys=dict(backbone=dict(lr_mult=1.0))))
