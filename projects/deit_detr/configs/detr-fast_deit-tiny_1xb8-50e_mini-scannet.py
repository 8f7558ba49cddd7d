"""The seed recipe's fast twin on MiniScanNet; detr-fast_deit-tiny_8xb1-150e_scannet.py explains the settings."""
_base_ = './detr_deit-tiny_1xb8-50e_mini-scannet.py'
model = dict(
    type='FastDETR',
    data_preprocessor=dict(type='FastDataPreprocessor', non_blocking=True),
    bbox_head=dict(type='FastDETRHead'))
optim_wrapper = dict(optimizer=dict(fused=True))
