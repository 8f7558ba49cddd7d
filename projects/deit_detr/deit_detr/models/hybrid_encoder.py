"""The hybrid encoder of RT-DETR and D-FINE on a plain ViT, as in EdgeCrafter's ECDet."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.layers import DetrTransformerEncoderLayer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from deit_detr.models.attention import replace_attention

NORM, ACT = dict(type='BN'), dict(type='SiLU')


@MODELS.register_module()
class HybridEncoder(BaseModule):
    """Bring the maps of a plain ViT to several strides, and fuse them (RT-DETR, arXiv 2304.08069; ECDet).

    The mean of the maps is resized to each stride. A transformer layer updates the coarsest level; then features flow
    to the finest level and back, as in PAFPN. A level has half as many rows and columns as the finer one, rounded
    up.

    Args:
        in_channels (list[int]): Channels of each map of the backbone, all alike. The maps have stride 16.
        out_channels (int): Channels of each level. If the maps have as many, only the coarsest level is projected.
        num_heads (int): Heads of the transformer layer.
        feedforward_channels (int): Hidden channels of the transformer layer.
        expansion (float): Channels inside a fusion block relative to half of ``out_channels``.
        num_blocks (int): Convolutions in each of the two parts of a fusion block.
        strides (tuple[int, ...]): Strides of the levels: ``(8, 16, 32)``, or ``(16, 32)`` for small images.
        norm_cfg (dict): Norm of the convolutions.

    Raises:
        ValueError: If the maps have different channels, or a stride is not 8, 16 or 32 in this order.
    """

    def __init__(
        self, in_channels: list[int], out_channels: int, num_heads: int = 8, feedforward_channels: int = 512,
        expansion: float = 0.34, num_blocks: int = 2, strides: tuple[int, ...] = (8, 16, 32), norm_cfg: dict = NORM,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        if self.strides not in ((8, 16, 32), (16, 32)):
            raise ValueError(f'HybridEncoder supports the strides (8, 16, 32) and (16, 32), not {strides}')
        last = len(strides) - 1
        width = in_channels[0]
        if any(channels != width for channels in in_channels):
            raise ValueError(f'HybridEncoder averages maps, so all need the same channels, not {in_channels}')
        self.projections = nn.ModuleList(
            nn.Identity() if level < last and width == out_channels else
            ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for level in range(last + 1))
        # 0.0 is the default, but mmcv's MultiheadAttention remembers the last value given in the process
        self.layer = DetrTransformerEncoderLayer(
            self_attn_cfg=dict(embed_dims=out_channels, num_heads=num_heads, dropout=0.0, batch_first=True),
            ffn_cfg=dict(
                embed_dims=out_channels, feedforward_channels=feedforward_channels, ffn_drop=0.0, act_cfg=ACT))
        replace_attention(self.layer)
        hidden = round(expansion * out_channels // 2)
        self.laterals = nn.ModuleList(
            ConvModule(out_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for _ in range(last))
        self.downs = nn.ModuleList(
            nn.Sequential(
                ConvModule(out_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(
                    out_channels, out_channels, 3, stride=2, padding=1, groups=out_channels, norm_cfg=norm_cfg,
                    act_cfg=None)) for _ in range(last))
        self.fine_blocks, self.coarse_blocks = (
            nn.ModuleList(FusionBlock(out_channels, hidden, num_blocks, norm_cfg) for _ in range(last))
            for _ in range(2))

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layer, for what handles the layers of an encoder."""
        return [self.layer]

    def init_weights(self) -> None:
        """Initialize the transformer layer as mmdet's encoders do."""
        super().init_weights()
        for param in self.layer.parameters():
            if param.dim() > 1:
                nn.init.xavier_uniform_(param)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs (tuple[Tensor, ...]): Maps of the backbone, all of one size, ``(batch, in_channels[i], rows,
                columns)`` each.

        Returns:
            tuple[Tensor, ...]: For each stride ``(batch, out_channels, rows * 16 / stride, columns * 16 / stride)``,
            rounded up.
        """
        mean = torch.stack(inputs).mean(0) if len(inputs) > 1 else inputs[0]
        rows, columns = mean.shape[2:]
        of_stride = {8: (2 * rows, 2 * columns), 16: (rows, columns), 32: ((rows + 1) // 2, (columns + 1) // 2)}
        sizes = [of_stride[stride] for stride in self.strides]
        levels = [
            project(mean if stride == 16 else F.interpolate(mean, size, mode='bilinear'))
            for project, stride, size in zip(self.projections, self.strides, sizes, strict=True)]

        tokens = levels[-1].flatten(2).transpose(1, 2)
        pos = position_encoding(sizes[-1], self.layer.embed_dims, tokens.device)
        tokens = self.layer(tokens, query_pos=pos, key_padding_mask=None)
        levels[-1] = tokens.transpose(1, 2).unflatten(2, sizes[-1])
        for index, (lateral, block) in enumerate(zip(self.laterals, self.fine_blocks, strict=True)):
            coarse = len(levels) - 1 - index
            levels[coarse] = lateral(levels[coarse])
            levels[coarse - 1] = block(F.interpolate(levels[coarse], sizes[coarse - 1]) + levels[coarse - 1])
        for index, (down, block) in enumerate(zip(self.downs, self.coarse_blocks, strict=True)):
            levels[index + 1] = block(down(levels[index]) + levels[index + 1])
        return tuple(levels)


class FusionBlock(nn.Module):
    """Mix a map by convolutions of a few channels (GELAN as in D-FINE, arXiv 2410.13842).

    Args:
        channels (int): Channels of input and output.
        hidden (int): Channels of the convolutions.
        num_blocks (int): 3x3 convolutions in each of the two parts, with a 1x1 convolution beside each.
        norm_cfg (dict): Norm of the convolutions.
    """

    def __init__(self, channels: int, hidden: int, num_blocks: int, norm_cfg: dict) -> None:
        super().__init__()
        cfg = dict(norm_cfg=norm_cfg, act_cfg=ACT)
        self.first = ConvModule(channels, 2 * channels, 1, **cfg)
        self.parts = nn.ModuleList(
            SplitConvs(width, hidden, num_blocks, norm_cfg) for width in (channels, hidden))
        self.last = ConvModule(2 * channels + 2 * hidden, channels, 1, **cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, channels, rows, columns)``, as the input."""
        maps = list(self.first(x).chunk(2, 1))
        for part in self.parts:
            maps.append(part(maps[-1]))
        return self.last(torch.cat(maps, 1))


class SplitConvs(nn.Module):
    """Pass one half of the channels through convolutions, and add the other."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, norm_cfg: dict) -> None:
        super().__init__()
        self.split = ConvModule(in_channels, 2 * out_channels, 1, norm_cfg=norm_cfg, act_cfg=ACT)
        self.blocks = nn.Sequential(*(TwoConvs(out_channels, norm_cfg) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        kept, changed = self.split(x).chunk(2, 1)
        return kept + self.blocks(changed)


class TwoConvs(nn.Module):
    """The sum of a 3x3 and a 1x1 convolution, as in RepVGG (arXiv 2101.03697)."""

    def __init__(self, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            ConvModule(channels, channels, kernel, padding=kernel // 2, norm_cfg=norm_cfg, act_cfg=None)
            for kernel in (3, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        large, small = self.convs
        return F.silu(large(x) + small(x))


def position_encoding(size: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Return sines and cosines of each token's row in the first half of the channels, of its column in the second.

    On square maps this is RT-DETR's encoding. On others, RT-DETR and its followers count the tokens down the columns,
    while tokens are in rows: their rows and columns are mixed up.

    Args:
        size (tuple[int, int]): Rows and columns of the map.
        channels (int): Channels, a multiple of 4.
        device (torch.device): Device of the result.

    Returns:
        Tensor: ``(1, tokens, channels)``.
    """
    frequencies = 10000.0 ** -(torch.arange(channels // 4, device=device) / (channels // 4))
    angles = torch.meshgrid(*(torch.arange(n, device=device) for n in size), indexing='ij')
    angles = [n.flatten()[:, None] * frequencies for n in angles]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)[None]
