"""The quickstart's recipe where no pretrained weights can be reached: a convolutional stem learns from few images."""
_base_ = ['./ec-detr_deit-tiny_1xb4-16e_mini-scannet.py', '../../../configs/_base_/backbones/ecvit-tiny.py']
model = dict(backbone=dict(_delete_=True, **_base_.backbone))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
