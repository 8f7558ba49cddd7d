"""The relatives of DETR that learn in fewer epochs, with this project's attention in place of mmcv's.

Parameters, state-dict keys and numbers are those of mmdet's classes; a checkpoint of either loads into the other,
strictly.
"""

from mmdet.models import DABDETR, DINO, ConditionalDETR, DeformableDETR
from mmdet.registry import MODELS

from deit_detr.models.attention import fuse_attention
from deit_detr.models.deformable_attention import make_portable
from deit_detr.models.fast_detr import FastDETR


@MODELS.register_module()
class FastConditionalDETR(FastDETR, ConditionalDETR):
    """mmdet's ``ConditionalDETR`` (arXiv 2108.06152); its encoder never holds the matrix of all pairs of tokens."""


@MODELS.register_module()
class FastDABDETR(FastDETR, DABDETR):
    """mmdet's ``DABDETR`` (arXiv 2201.12329); its encoder never holds the matrix of all pairs of tokens."""


@MODELS.register_module()
class FastDeformableDETR(DeformableDETR):
    """mmdet's ``DeformableDETR`` (arXiv 2010.04159) for every device, with or without a CUDA build of mmcv."""

    def _init_layers(self) -> None:
        super()._init_layers()
        make_portable(self)
        fuse_attention(self.decoder)


@MODELS.register_module()
class FastDINO(FastDeformableDETR, DINO):
    """mmdet's ``DINO`` (arXiv 2203.03605) for every device, with or without a CUDA build of mmcv."""
