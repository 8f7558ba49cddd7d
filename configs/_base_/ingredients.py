"""Ingredients of a training as of today, for any recipe: augmentation, moving average, schedule, early stopping.

MMEngine refuses two base files that set the same field. So these are variables. A recipe names this file in `_base_`,
beside its own, and puts in place what it wants; docs/train.md shows it.
"""
# Probabilities. Mosaic and mixup stop after half of the training, the rest after 0.9 of it.
strong_augment = dict(mosaic=0.5, mixup=0.5, zoom_out=0.5, iou_crop=0.8, photometric=0.5)

# The last tenth of the steps so far, at most about 10,000 of them: it fits trainings of any length.
ema = dict(type='EMAHook', ema_type='MomentumAnnealingEMA', gamma=10, momentum=1e-4, update_buffers=True)

# From the epoch `begin`, which the recipe adds, a cosine to half of the rate at the end; the rate is constant before.
flat_cosine = dict(type='CosineAnnealingLR', eta_min_ratio=0.5, convert_to_iter_based=True)

# Five evaluations without a better AP.
early_stopping = dict(type='ResumableEarlyStoppingHook')
