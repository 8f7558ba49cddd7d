"""ECViT-tiny, for a recipe that inherits from one with DeiT-tiny.

The recipe puts it in place: `model = dict(backbone=dict(_delete_=True, **_base_.backbone))`. The published weights are
converted by tools/model_converters/ecdet_to_mmdet.py.
"""
backbone = dict(type='ECViT', arch='deit-tiny', out_indices=[10, 11])
