"""DETR, the same architecture, parameters and numbers, computed with less time and memory."""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmdet.models import DETR
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from deit_detr.models.attention import fuse_attention


@MODELS.register_module()
class FastDETR(DETR):
    """mmdet's ``DETR`` with fused attention; a checkpoint of either loads into the other, strictly.

    Use it with :class:`FastDETRHead`. The padding mask is decided on the host, from the shapes in the metadata
    (``DETR.pre_transformer``): a batch of equal images has none.

    Args:
        compile (dict, optional): Arguments of ``torch.compile`` for backbone, encoder and decoder, e.g. ``dict()``.
            Each is one graph, but for training with dropout on a CPU. With ``dynamic=False`` there is one for each
            shape, and from the ninth on PyTorch compiles no more (``torch._dynamo.config.recompile_limit``): see
            :class:`BatchRandomResize`. The head is left out: matching leaves the graph anyway.
        *args: As for ``DETR``.
        **kwargs: As for ``DETR``.
    """

    def __init__(self, *args, compile: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if compile is not None:
            for module in self.backbone.modules():
                if isinstance(module, DropPath):
                    # mmpretrain sets a NumPy number, and an `if` on one of those splits the graph in every layer
                    module.drop_prob = float(module.drop_prob)
            for module in (self.backbone, self.encoder, self.decoder):
                module.compile(**compile)

    def _init_layers(self) -> None:
        super()._init_layers()
        fuse_attention(self.encoder)
        fuse_attention(self.decoder)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses; bring what will be logged to the host in one copy.

        mmengine reads every logged value with ``item()``: twenty waits for the device a step.

        Args:
            losses (dict[str, Tensor]): The losses as the head gives them.

        Returns:
            tuple: The total loss, and the values to log, on the CPU.
        """
        total, log_vars = super().parse_losses(losses)
        values = torch.stack([value.detach() for value in log_vars.values()]).cpu()
        return total, type(log_vars)(zip(log_vars, values, strict=True))


@MODELS.register_module()
class BatchRandomResize(nn.Module):
    """Scale a training batch by one of a few factors: multi-scale training without padding, and with few shapes.

    A batch augmentation of ``DetDataPreprocessor``. mmdet's ``BatchSyncRandomResize`` draws sizes from a range,
    truncates widths and ``img_shape`` (one column less than the image makes DETR build a padding mask), and reads what
    it drew back from the device.

    Args:
        scales (Sequence[float]): One is drawn for each batch, from Python's ``random``, which
            :class:`ResumableTrainLoop` seeds alike in all processes.
        size_divisor (int): Height and width become multiples of it.
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
            boxes = sample.gt_instances.bboxes.clone()  # on a CPU those of the data loader
            boxes[:, 0::2] *= x
            boxes[:, 1::2] *= y
            sample.gt_instances.bboxes = boxes
        return F.interpolate(inputs, size=new, mode='bilinear', align_corners=False), data_samples
