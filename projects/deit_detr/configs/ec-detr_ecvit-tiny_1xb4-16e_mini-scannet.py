"""The quickstart's recipe where no pretrained weights can be reached: a convolutional stem learns from few images."""
_base_ = './ec-detr_deit-tiny_1xb4-16e_mini-scannet.py'
model = dict(backbone=dict(_delete_=True, type='ECViT', arch='deit-tiny', out_indices=[10, 11]))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
