"""DINO's long schedule, for a recipe that inherits from its 12-epoch twin: the learning rate drops to a tenth after 30.

MMEngine refuses two base files that set the same field. So this is a variable, and the recipe puts its fields in place:
`train_cfg = _base_.schedule_36e.train_cfg` and `param_scheduler = _base_.schedule_36e.param_scheduler`.
"""
schedule_36e = dict(
    train_cfg=dict(max_epochs=36),
    param_scheduler=[dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[30], gamma=0.1)])
