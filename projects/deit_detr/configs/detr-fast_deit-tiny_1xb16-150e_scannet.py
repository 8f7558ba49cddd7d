"""The fast twin for one GPU, 16 images a step: one size per batch, no padding.

    python tools/train.py CONFIG --amp --auto-scale-lr

`--amp` is an option of the command, because mmengine's AmpOptimWrapper cannot be built without a GPU.
`--auto-scale-lr` doubles the learning rates for 16 images instead of 8. Without it they stay at 1e-4 and 1e-5, which
mmdet's DETR uses for 16. There is no warm-up. On an H100 in bfloat16, a step of 16 images of 800x1072 takes 10.8 GB.

`--cfg-options model.compile.dynamic=None` compiles the layers; no GPU has measured whether that pays.
"""
_base_ = ['./detr-fast_deit-tiny_8xb1-150e_scannet.py', '../../../configs/_base_/datasets/scannet_one_size.py']
model = dict(data_preprocessor=dict(batch_augments=_base_.one_size_augments))
train_dataloader = dict(batch_size=16, **_base_.one_size_dataloader)
