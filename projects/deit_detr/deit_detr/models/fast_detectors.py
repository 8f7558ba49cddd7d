"""Conditional DETR, DAB-DETR, Deformable DETR and DINO with this project's attention in place of mmcv's.

Parameters, state-dict keys and results are those of mmdet's classes: checkpoints load strictly in both directions.
"""

import torch
from mmdet.models import DABDETR, DINO, ConditionalDETR, DeformableDETR
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from deit_detr.models.attention import replace_attention
from deit_detr.models.fast_detr import FastDETR


class _HeadInFloat32:
    """Keep the head, the matching costs and the losses in float32 under autocast.

    mmdet refines boxes in place in the type of the head's output: bfloat16 would round them by up to 1.6 of 800 pixels.
    """

    def forward_transformer(self, *args, **kwargs) -> dict:
        """Run the transformer as mmdet does, and pass float32 to the head."""
        return {name: _in_float32(value) for name, value in super().forward_transformer(*args, **kwargs).items()}

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses as mmdet does."""
        head_inputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            return self.bbox_head.loss(**head_inputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Predict as mmdet does."""
        head_inputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            results = self.bbox_head.predict(**head_inputs, rescale=rescale, batch_data_samples=batch_data_samples)
        return self.add_pred_to_datasample(batch_data_samples, results)


def _in_float32(value):
    if isinstance(value, (list, tuple)):
        return [_in_float32(item) for item in value]
    return value.float() if isinstance(value, Tensor) else value


@MODELS.register_module()
class FastConditionalDETR(_HeadInFloat32, FastDETR, ConditionalDETR):
    """mmdet's ``ConditionalDETR`` (arXiv 2108.06152) with fused attention in the encoder."""


@MODELS.register_module()
class FastDABDETR(_HeadInFloat32, FastDETR, DABDETR):
    """mmdet's ``DABDETR`` (arXiv 2201.12329) with fused attention in the encoder."""


@MODELS.register_module()
class FastDeformableDETR(_HeadInFloat32, DeformableDETR):
    """mmdet's ``DeformableDETR`` (arXiv 2010.04159) on every device, with or without compiled mmcv operators."""

    def _init_layers(self) -> None:
        super()._init_layers()
        replace_attention(self)


@MODELS.register_module()
class FastDINO(FastDeformableDETR, DINO):
    """mmdet's ``DINO`` (arXiv 2203.03605) on every device, with or without compiled mmcv operators."""
