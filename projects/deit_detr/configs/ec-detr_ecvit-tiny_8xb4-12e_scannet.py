"""EC-DETR with ECViT-tiny on ScanNet-frames-25k, 8 GPUs x 4 images, 12 epochs.

Without weights everything starts at random. For those of EdgeCrafter, convert a file of its detector or of its ECViT
with tools/model_converters/ecdet_to_mmdet.py, and set `load_from` to the result (docs/migrate.md).
"""
_base_ = ['./ec-detr_deit-tiny_8xb4-12e_scannet.py', '../../../configs/_base_/backbones/ecvit-tiny.py']
model = dict(backbone=dict(_delete_=True, **_base_.backbone))
