"""ECViT, the backbone of EdgeCrafter's detectors: a ViT with a convolutional stem and rotary positions."""

import math

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmpretrain.models import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn

#: Longest period of the rotary positions, in units of half an image.
BASE_PERIOD = 100.0


class ConvStem(BaseModule):
    """Embed patches of 16x16 pixels by four 3x3 convolutions of stride 2, each twice as wide as the one before.

    Args:
        embed_dims (int): Number of output channels, a multiple of 8.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        widths = [3, embed_dims // 8, embed_dims // 4, embed_dims // 2]
        self.convs = nn.Sequential(*(
            ConvModule(before, after, 3, stride=2, padding=1, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
            for before, after in zip(widths, widths[1:], strict=False)))
        self.projection = nn.Conv2d(widths[-1], embed_dims, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens of ``(batch, 3, height, width)``, ``(batch, tokens, channels)``, and (rows, columns)."""
        x = self.projection(self.convs(x))
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


@MODELS.register_module()
class ECViT(VisionTransformer):
    """mmpretrain's ``VisionTransformer`` with the stem and the positions of EdgeCrafter's ECViT (TMLR 2026).

    Positions are rotations of queries and keys (2-D RoPE as in DINOv3, relative to the size of the map), so any input
    size works without interpolation. One register token, ``cls_token`` here, takes part in attention; it has no
    position and is not part of the output.

    Args:
        **kwargs: As for ``VisionTransformer``. The size of patches is 16, and there is no norm after the last layer.

    Raises:
        ValueError: If ``patch_size`` is not 16, or the width of a head is not a multiple of 4.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**dict(with_cls_token=True, out_type='featmap', final_norm=False) | kwargs)
        num_heads = self.arch_settings['num_heads']
        head_dims = self.embed_dims // num_heads
        if kwargs.get('patch_size', 16) != 16 or head_dims % 4:
            raise ValueError('ECViT needs patch_size=16, and heads whose width is a multiple of 4')
        self.patch_embed = ConvStem(self.embed_dims)
        self.pos_embed = None
        periods = BASE_PERIOD ** (torch.arange(head_dims // 4) / (head_dims // 4))
        self.register_buffer('periods', periods, persistent=False)
        for layer in self.layers:
            layer.__class__ = RotaryLayer
        if self.frozen_stages > 0:  # the stem was replaced
            self._freeze_stages()

    def init_weights(self) -> None:
        """Initialize as mmpretrain does, and the register token as ECViT does."""
        super().init_weights()
        if not (isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained'):
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def train(self, mode: bool = True) -> None:
        """Set the mode; frozen batch norms keep their statistics."""
        super().train(mode)
        if self.frozen_stages > 0:
            self.patch_embed.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Images, ``(batch, 3, height, width)``.

        Returns:
            tuple[Tensor, ...]: A map for each of ``out_indices``, ``(batch, channels, rows, columns)``.
        """
        x, size = self.patch_embed(x)
        x = self.drop_after_pos(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1))
        rotation = self.rotation(size)
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation)
            if index in self.out_indices:
                # all of it: ONNX export takes the size of a reshaped map for constant, but not that of a slice
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, size)[:, :, :size[0], :size[1]])
        return tuple(maps)

    def rotation(self, size: tuple[int, int]) -> Tensor:
        """Return cosines and sines of the rotation of each token, ``(2, 1 + tokens, channels of a head)``.

        Args:
            size (tuple[int, int]): Rows and columns of the map. The register token is first and does not turn.
        """
        device = self.periods.device
        y, x = torch.meshgrid(*((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in size), indexing='ij')
        angles = 2 * math.pi * torch.stack([y, x], -1).flatten(0, 1)[..., None] / self.periods
        angles = F.pad(angles.flatten(1), (0, 0, 1, 0)).repeat(1, 2)
        return torch.stack([angles.cos(), angles.sin()])


class RotaryLayer(TransformerEncoderLayer):
    """mmpretrain's ``TransformerEncoderLayer`` with rotated queries and keys."""

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Return the next states of ``(batch, tokens, channels)``; ``rotation`` is as :meth:`ECViT.rotation`."""
        attn = self.attn
        qk, v = attn.qkv(self.ln1(x)).unflatten(-1, (3, attn.num_heads, -1)).transpose(1, 3).split([2, 1], 2)
        q, k = rotate(qk, rotation).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v.squeeze(2), dropout_p=attn.attn_drop if self.training else 0.0)
        out = attn.proj(out.transpose(1, 2).flatten(2))
        x = x + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
        return self.ffn(self.ln2(x), identity=x)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate pairs of channels, the i-th of the first half with the i-th of the second.

    Args:
        x (Tensor): Queries or keys, ``(..., tokens, channels)``.
        rotation (Tensor): Cosines and sines, ``(2, tokens, channels)``.

    Returns:
        Tensor: In the shape and type of ``x``.
    """
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
