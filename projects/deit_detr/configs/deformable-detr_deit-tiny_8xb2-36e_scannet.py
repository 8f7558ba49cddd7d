"""Two-stage Deformable DETR with DeiT-tiny on ScanNet-frames-25k for 36 epochs instead of 12."""
_base_ = ['./deformable-detr_deit-tiny_8xb2-12e_scannet.py', '../../../configs/_base_/schedules/detr_36e.py']
train_cfg = _base_.schedule_36e.train_cfg
param_scheduler = _base_.schedule_36e.param_scheduler
