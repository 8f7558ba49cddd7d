"""DETR, the same architecture, parameters and numbers, computed with less time and memory."""

import torch
from mmdet.models import DETR
from mmdet.registry import MODELS
from torch import Tensor

from deit_detr.models.attention import fuse_attention


@MODELS.register_module()
class FastDETR(DETR):
    """mmdet's ``DETR`` with fused attention; a checkpoint of either loads into the other, strictly.

    Use it with :class:`FastDETRHead`. The padding mask is decided on the host, from the shapes in the metadata
    (``DETR.pre_transformer``): a batch of equal images has none.

    Args:
        compile (dict, optional): Arguments of ``torch.compile`` for backbone, encoder and decoder, e.g. ``dict()``.
            For GPUs; on a CPU it brought nothing. The head is left out: matching leaves the graph anyway.
        *args: As for ``DETR``.
        **kwargs: As for ``DETR``.
    """

    def __init__(self, *args, compile: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if compile is not None:
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
