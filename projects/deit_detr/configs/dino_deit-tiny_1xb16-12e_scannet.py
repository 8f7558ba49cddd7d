"""DINO with DeiT-tiny on ScanNet-frames-25k for one GPU, 16 images a step: one size per batch, no padding.

    python tools/train.py CONFIG --amp

A step has as many images as that of the 8-GPU recipe, so the rates are the same: 1e-4, the backbone 1e-5, no warm-up.
`--amp` is bfloat16; it is an option of the command, because mmengine's AmpOptimWrapper cannot be built without a GPU.

Memory of a step on an H100 in bfloat16, images of 800x1072, commit 60cee77: 13.6 GB with 8 images. From that, 16 need
a card of 40 GB and 32 one of 80 GB. For 24 GB, add `--auto-scale-lr --cfg-options train_dataloader.batch_size=8`.
`--cfg-options model.compile.dynamic=None` compiles the layers; no GPU has measured whether that pays.
"""
_base_ = ['./dino_deit-tiny_8xb2-12e_scannet.py', '../../../configs/_base_/datasets/scannet_one_size.py']
model = dict(data_preprocessor=dict(batch_augments=_base_.one_size_augments))
train_dataloader = dict(batch_size=16, **_base_.one_size_dataloader)
