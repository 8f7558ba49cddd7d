"""DeiT-base, for a recipe that inherits from one with DeiT-tiny; used like deit-small.py."""
backbone = dict(
    arch='deit-base',
    init_cfg=dict(
        checkpoint='{{$DEIT_CHECKPOINT:https://download.openmmlab.com/mmclassification/v0/deit/deit-base_pt-16xb64_in1k_20220216-db63c16c.pth}}'))
width = 768
