"""LW-DETR with DeiT-tiny on ScanNet-frames-25k, three times as long."""
_base_ = './lw-detr_deit-tiny_8xb4-12e_scannet.py'
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[30], gamma=0.1)
]
