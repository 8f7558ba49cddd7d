"""EC-DETR (EdgeCrafter's ECDet-S, TMLR 2026) on ECViT-tiny: D-FINE's decoder and DEIM's loss, three strides."""
_base_ = './ec-detr_deit-tiny.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ECViT',  # its published weights: tools/model_converters/ecdet_to_mmdet.py
        arch='deit-tiny',
        out_indices=[10, 11]))
