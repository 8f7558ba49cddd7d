"""The seed recipe in MMEngine's pure-Python style: the same model, pipelines and optimizer, types as classes."""
from mmengine.config import read_base

with read_base():
    from .....configs._base_.pure_python.default_runtime import *
    from .....configs._base_.pure_python.detr_150e import *
    from .....configs._base_.pure_python.detr_deit_tiny import *
    from .....configs._base_.pure_python.scannet_detection import *
