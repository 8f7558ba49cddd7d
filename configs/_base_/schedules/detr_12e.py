"""The schedule of DINO: 12 epochs, the learning rate drops to a tenth after 11.

A moving average of the weights, which is then what is evaluated and saved, is one line, in a recipe or behind
`--cfg-options`: `default_hooks.ema.type=EMAHook` (mmengine's; momentum 0.0002, about the last 5000 steps).
Learning rates that fall from the last layer of the backbone to the first are another:
`optim_wrapper.paramwise_cfg.layer_decay_rate=0.7`.
"""
_base_ = './detr_150e.py'
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[11], gamma=0.1)
]
# 8 GPUs x 2 images
auto_scale_lr = dict(base_batch_size=16)
