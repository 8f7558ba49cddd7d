"""LW-DETR with DeiT-tiny on ScanNet-frames-25k for one GPU, 32 images a step: one size per batch, no padding.

    python tools/train.py CONFIG --amp

A step has as many images as that of the 8-GPU recipe, so the rates are the same: 2e-4, the backbone 1e-4, no warm-up.
`--amp` is bfloat16; it is an option of the command, because mmengine's AmpOptimWrapper cannot be built without a GPU.

Memory of a step on an H100 in bfloat16, images of 800x1072, commit 60cee77: 17.3 GB with 32 images, 8.8 GB with 16.
So 32 images need a card of 24 GB. For less, add `--auto-scale-lr --cfg-options train_dataloader.batch_size=16` (12 GB).
`--cfg-options model.compile.dynamic=None` compiles the layers; no GPU has measured whether that pays.
"""
_base_ = ['./lw-detr_deit-tiny_8xb4-12e_scannet.py', '../../../configs/_base_/datasets/scannet_one_size.py']
model = dict(data_preprocessor=dict(batch_augments=_base_.one_size_augments))
train_dataloader = dict(batch_size=32, **_base_.one_size_dataloader)
