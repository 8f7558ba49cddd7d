"""DeiT with window attention between global layers, as in ViTDet (arXiv 2203.16527) and LW-DETR."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmpretrain.models import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor


@MODELS.register_module()
class WindowedViT(VisionTransformer):
    """mmpretrain's ``VisionTransformer`` in which most layers attend inside windows only.

    Parameters and state-dict keys are those of the plain class: its checkpoints load, and if ``global_layers`` lists
    all layers the results are the same. A map is cut into as few windows of equal size as ``window_size`` allows. If
    the size does not divide, windows are padded below and to the right and masked; global layers see the real tokens
    only, without a mask, so that attention takes its fastest kernel.

    Args:
        window_size (int | tuple[int, int]): Maximum rows and columns of tokens in a window.
        global_layers (list[int]): Indices of the layers that attend to the whole map.
        num_windows (int, optional): Cut every map into this number of windows in each direction, whatever its size,
            as in the published LW-DETR; ``window_size`` is not used then.
        **kwargs: As for ``VisionTransformer``. The final norm, if there is one, applies to the maps of all
            ``out_indices``, as in DINOv2, not to the last layer only.

    Raises:
        ValueError: If there is a class token, or the output is not feature maps.
    """

    def __init__(
        self, window_size: int | tuple[int, int], global_layers: list[int], num_windows: int | None = None, **kwargs,
    ) -> None:
        kwargs = dict(with_cls_token=False, out_type='featmap') | kwargs
        super().__init__(**kwargs)
        if self.with_cls_token or self.out_type != 'featmap':
            raise ValueError("WindowedViT needs with_cls_token=False and out_type='featmap'")
        self.window_size = (window_size, window_size) if isinstance(window_size, int) else tuple(window_size)
        self.num_windows = num_windows
        self.global_layers = {range(self.num_layers)[index] for index in global_layers}
        for layer in self.layers:
            layer.__class__ = WindowedLayer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Images, ``(batch, 3, height, width)``.

        Returns:
            tuple[Tensor, ...]: A map for each of ``out_indices``, ``(batch, channels, rows, columns)``, in
            channels-last memory format.
        """
        batch = x.shape[0]  # of the input: after patch_embed, ONNX export makes it a constant
        x, size = self.patch_embed(x)
        x = x + resize_pos_embed(self.pos_embed, self.patch_resolution, size, self.interpolate_mode, 0)
        windows = self.windows(size, x.device)
        x = self.pre_norm(self.drop_after_pos(x)).unflatten(1, size)
        mask = windows.mask(batch)

        maps, is_split = [], False
        for index, layer in enumerate(self.layers):
            if index in self.global_layers:
                x, is_split = windows.join(x) if is_split else x, False
                x = layer(x.flatten(1, 2)).view_as(x)
            else:
                x, is_split = x if is_split else windows.split(x), True
                x = layer(x.flatten(0, 1), mask).view_as(x)
            if index in self.out_indices:
                features = windows.join(x) if is_split else x
                features = self.ln1(features) if self.final_norm else features
                # all of it: ONNX export does not know the type of what LayerNorm returns, but that of a slice
                maps.append(features[:, :size[0], :size[1]].permute(0, 3, 1, 2))
        return tuple(maps)

    def windows(self, size: tuple[int, int], device: torch.device) -> 'Windows':
        """Return how maps of ``size`` (rows, columns) are cut."""
        largest, number = self.window_size, self.num_windows
        if number:  # rounded up in integers, as in Windows
            largest = tuple((s + number - 1) // number for s in size)
        return Windows(size, largest, device)


class Windows:
    """Split maps of one size into equal windows, and join them again.

    Args:
        size (tuple[int, int]): Rows and columns of the maps.
        largest (tuple[int, int]): Maximum rows and columns of a window.
        device (torch.device): Device of the masks.
    """

    def __init__(self, size: tuple[int, int], largest: tuple[int, int], device: torch.device) -> None:
        self.size = size
        # rounded up in integers: ONNX export traces these, but neither math.ceil nor negative division
        self.number = tuple((s + most - 1) // most for s, most in zip(size, largest, strict=True))
        self.side = tuple((s + n - 1) // n for s, n in zip(size, self.number, strict=True))
        rows, columns = (n * s for n, s in zip(self.number, self.side, strict=True))
        self.padding = (0, 0, 0, columns - size[1], 0, rows - size[0])
        # an exported graph has to support sizes with and without padding
        self.is_padded = torch.onnx.is_in_onnx_export() or any(self.padding)
        self.device = device

    def split(self, x: Tensor) -> Tensor:
        """Split ``(batch, rows, columns, channels)`` to ``(batch, windows, tokens of a window, channels)``."""
        if self.is_padded:
            x = F.pad(x, self.padding)
        x = x.unflatten(2, (self.number[1], self.side[1])).unflatten(1, (self.number[0], self.side[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """Join ``(batch, windows, tokens of a window, channels)`` to ``(batch, rows, columns, channels)``."""
        x = x.unflatten(2, self.side).unflatten(1, self.number)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :self.size[0], :self.size[1]]

    def mask(self, batch: int) -> Tensor | None:
        """Return the attention mask of all windows, False for padded tokens; None if there are none.

        Args:
            batch (int): Number of maps.

        Returns:
            Tensor | None: ``(batch x windows, 1, 1, tokens of a window)``.
        """
        if not self.is_padded:
            return None
        takes_part = self.split(torch.ones(1, *self.size, 1, dtype=torch.bool, device=self.device))[..., 0]
        return takes_part.repeat(batch, 1, 1).flatten(0, 1)[:, None, None]


class WindowedLayer(TransformerEncoderLayer):
    """mmpretrain's ``TransformerEncoderLayer`` with a mask and without three copies of qkv's gradient."""

    def forward(self, x: Tensor, takes_part: Tensor | None = None) -> Tensor:
        """Return the next states of ``(sequences, tokens, channels)``; the mask is as :meth:`Windows.mask` makes it."""
        attn = self.attn
        q, k, v = attn.qkv(self.ln1(x)).unflatten(-1, (3, attn.num_heads, -1)).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v, takes_part, dropout_p=attn.attn_drop if self.training else 0.0)
        out = attn.proj(out.transpose(1, 2).flatten(2))
        x = x + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
        return self.ffn(self.ln2(x), identity=x)
