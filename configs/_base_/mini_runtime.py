"""default_runtime.py for MiniScanNet: an epoch has few steps, and after few steps scores are low."""
_base_ = './default_runtime.py'
default_hooks = dict(logger=dict(interval=10), visualization=dict(score_thr=0.2))
