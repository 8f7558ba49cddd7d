"""Feature maps of several strides from a plain vision transformer."""

import math

import torch
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

NORM = dict(type='mmpretrain.LN2d')  # over the channels of each position: padding does not enter any statistics


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """The simple feature pyramid of ViTDet (arXiv 2203.16527).

    Each level is made from the same map. Transposed convolutions, each of which doubles the sides and halves the
    channels, make a finer level, with a norm and a GELU between two of them. Max pooling makes a coarser level; an odd
    last row or column is pooled alone. Each level ends with a 1x1 and a 3x3 convolution, both with a norm.

    ViTDet needs the last map only. To use several layers of the backbone, list them in ``out_indices`` (a tuple with a
    negative index fails), and repeat ``in_channels``::

        backbone=dict(type='mmpretrain.VisionTransformer', out_indices=[2, 5, 8, 11], ...),
        neck=dict(type='SimpleFPN', in_channels=[192] * 4, ...)

    Their maps are normalized, because the backbone's final norm applies to the last layer only, and concatenated. On
    MiniScanNet several maps are no better than the last, within the spread of two seeds (docs/benchmarks.md).

    Args:
        in_channels (list[int]): Channels of each map of the backbone.
        out_channels (int): Channels of each level.
        strides (list[int]): Strides of the levels in pixels: ``in_stride`` multiplied or divided by a power of 2.
        in_stride (int): Stride of the backbone's maps, in pixels: the size of its patches.
        norm_cfg (dict): Norm layer; by default over channels as in ViTDet.
        init_cfg (dict, optional): As for ``BaseModule``.

    Raises:
        ValueError: If a stride is not ``in_stride`` multiplied or divided by a power of 2.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int = 256, strides: list[int] = (8, 16, 32), in_stride: int = 16,
        norm_cfg: dict = NORM, init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        several = len(in_channels) > 1
        self.norms = nn.ModuleList(
            build_norm_layer(norm_cfg, channels)[1] if several else nn.Identity() for channels in in_channels)
        self.levels = nn.ModuleList()
        for stride in strides:
            layers, channels = _resample(sum(in_channels), in_stride, stride, norm_cfg)
            self.levels.append(nn.Sequential(
                *layers,
                ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)))

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs (tuple[Tensor, ...]): Maps of the backbone, all of one size, ``(batch, in_channels[i], rows,
                columns)`` each.

        Returns:
            tuple[Tensor, ...]: For each stride ``(batch, out_channels, rows * in_stride / stride, columns * in_stride
            / stride)``, rounded up.
        """
        x = torch.cat([norm(x) for norm, x in zip(self.norms, inputs, strict=True)], 1)
        return tuple(level(x) for level in self.levels)


def _resample(channels: int, in_stride: int, stride: int, norm_cfg: dict) -> tuple[list[nn.Module], int]:
    """Return the layers that change the stride of a map, and their number of output channels."""
    doublings = math.log2(in_stride / stride)
    if doublings != round(doublings):
        raise ValueError(f'SimpleFPN supports {in_stride} multiplied or divided by a power of 2, not {stride}')
    if doublings < 0:
        return [nn.MaxPool2d(stride // in_stride, ceil_mode=True)], channels
    layers = []
    for index in range(round(doublings)):
        if index > 0:
            layers += [build_norm_layer(norm_cfg, channels)[1], nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return layers, channels
