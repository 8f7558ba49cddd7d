"""DETR on plain DeiT backbones for MMDetection 3.x; importing the package registers its classes."""

from deit_detr.checkpoints.safe_loading import allow_mmengine_checkpoints
from deit_detr.datasets.scannet import ScanNetDataset
from deit_detr.engine.hooks import PretrainedCheckHook
from deit_detr.engine.optim import GroupedOptimWrapperConstructor

__version__ = '0.1.0'
__all__ = ['GroupedOptimWrapperConstructor', 'PretrainedCheckHook', 'ScanNetDataset']

allow_mmengine_checkpoints()
