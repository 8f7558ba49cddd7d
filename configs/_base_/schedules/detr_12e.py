"""DINO's schedule: 12 epochs, the learning rate drops to a tenth after 11.

Two additions take one line each, in a recipe or behind `--cfg-options`:

- `default_hooks.ema.type=EMAHook` evaluates and saves a moving average of the weights over about the last 5000 steps
  (mmengine's hook with its momentum of 0.0002). `../ingredients.py` has one that fits trainings of any length.
- `optim_wrapper.paramwise_cfg.layer_decay_rate=0.7` makes each layer of the backbone learn slower than the one above.
"""
_base_ = './detr_150e.py'
train_cfg = dict(max_epochs=12)
optim_wrapper = dict(optimizer=dict(fused=True))
param_scheduler = [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)  # 8 GPUs x 2 images
