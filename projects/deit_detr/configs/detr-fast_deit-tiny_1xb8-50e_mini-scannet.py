"""The fast twin of the seed recipe's model on MiniScanNet."""
_base_ = './detr_deit-tiny_1xb8-50e_mini-scannet.py'
model = dict(
    type='FastDETR',
    data_preprocessor=dict(non_blocking=True),
    bbox_head=dict(type='FastDETRHead'))
optim_wrapper = dict(optimizer=dict(fused=True))
