"""DeiT-small, for a recipe that inherits from one with DeiT-tiny: the backbone's other fields, and its width.

MMEngine refuses two base files that set the same field. So these are variables, and the recipe puts them in place:
`model = dict(backbone=_base_.backbone, neck=dict(in_channels=[_base_.width]))`.
"""
backbone = dict(
    arch='deit-small',
    init_cfg=dict(
        checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth}}'))
width = 384
