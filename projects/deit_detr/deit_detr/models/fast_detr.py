"""DETR with the same parameters and results as mmdet's, in less time and memory."""

import random
from collections.abc import Sequence

import torch.nn.functional as F
from mmdet.models import DETR
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from deit_detr.models.attention import replace_attention
from deit_detr.models.cast_weights import WeightsCastOnce
from deit_detr.models.compiled import CompiledLayers
from deit_detr.models.host_losses import HostLosses


@MODELS.register_module()
class FastDETR(WeightsCastOnce, HostLosses, CompiledLayers, DETR):
    """mmdet's ``DETR`` (arXiv 2005.12872) with fused attention; checkpoints load strictly in both directions.

    Use it with :class:`FastDETRHead`. ``DETR.pre_transformer`` makes a padding mask only if the images of a batch
    differ in size, which it reads from the metadata on the host.

    Args:
        compile (dict, optional): See :class:`CompiledLayers`.
        *args: As for ``DETR``.
        **kwargs: As for ``DETR``.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        replace_attention(self.encoder)
        replace_attention(self.decoder)


@MODELS.register_module()
class BatchRandomResize(nn.Module):
    """Scale each training batch by one of a few factors: multi-scale training without padding and with few shapes.

    Use it in ``batch_augments`` of a data preprocessor. mmdet's ``BatchSyncRandomResize`` draws sizes from a range,
    truncates ``img_shape`` (one column less than the image makes DETR build a padding mask), and reads the drawn size
    back from the device.

    Args:
        scales (Sequence[float]): Factors to draw from with Python's ``random``, which :class:`ResumableTrainLoop`
            seeds alike in all processes.
        size_divisor (int): Height and width become multiples of it, in pixels.
    """

    def __init__(self, scales: Sequence[float], size_divisor: int = 16) -> None:
        super().__init__()
        self.scales = list(scales)
        self.size_divisor = size_divisor

    def forward(self, inputs: Tensor, data_samples: SampleList) -> tuple[Tensor, SampleList]:
        """Resize images and boxes.

        Args:
            inputs (Tensor): ``(images, channels, height, width)``.
            data_samples (list[DetDataSample]): Each with ``img_shape`` and ``gt_instances.bboxes`` in pixels; both
                are replaced.

        Returns:
            tuple: Images and samples of the new size.
        """
        scale = random.choice(self.scales)
        old = inputs.shape[-2:]
        new = tuple(max(1, round(side * scale / self.size_divisor)) * self.size_divisor for side in old)
        y, x = (after / before for after, before in zip(new, old, strict=True))
        for sample in data_samples:
            height, width = sample.img_shape
            shape = (round(height * y), round(width * x))
            sample.set_metainfo(dict(img_shape=shape, pad_shape=shape, batch_input_shape=new))
            boxes = sample.gt_instances.bboxes.clone()  # on a CPU they belong to the data loader
            boxes[:, 0::2] *= x
            boxes[:, 1::2] *= y
            sample.gt_instances.bboxes = boxes
        return F.interpolate(inputs, size=new, mode='bilinear', align_corners=False), data_samples
