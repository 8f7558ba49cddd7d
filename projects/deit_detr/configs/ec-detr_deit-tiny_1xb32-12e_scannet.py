"""EC-DETR with DeiT-tiny on ScanNet-frames-25k for one GPU, 32 images a step: one size per batch, no padding.

    python tools/train.py CONFIG --amp

A step has as many images as that of the 8-GPU recipe, so the rates are the same. No GPU has measured its memory yet.
"""
_base_ = ['./ec-detr_deit-tiny_8xb4-12e_scannet.py', '../../../configs/_base_/datasets/scannet_one_size.py']
model = dict(data_preprocessor=dict(batch_augments=_base_.one_size_augments))
train_dataloader = dict(batch_size=32, **_base_.one_size_dataloader)
