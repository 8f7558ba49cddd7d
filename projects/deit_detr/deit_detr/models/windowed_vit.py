"""DeiT with window attention between its global layers, as in ViTDet and LW-DETR."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn


@MODELS.register_module()
class WindowedViT(VisionTransformer):
    """mmpretrain's ``VisionTransformer`` in which most layers attend inside windows only.

    Parameters and state-dict keys are those of the plain one: its checkpoints load, and with ``global_layers`` naming
    every layer it computes the same. Tokens are put in window order once (LW-DETR, arXiv 2406.03459): a global layer
    does not care about their order, so nothing is moved between the layers. A map is cut into as few windows as
    ``window_size`` allows, all of one size; where it does not come out even, tokens are added below and to the right,
    and hidden from all others by a mask.

    Args:
        window_size (int | tuple[int, int]): Most rows and columns of tokens in a window.
        global_layers (list[int]): Indices of the layers that attend to the whole map.
        **kwargs: As for ``VisionTransformer``. Maps of all ``out_indices`` pass the final norm, as DINOv2's do;
            the plain one normalizes the last layer's only.

    Raises:
        ValueError: If there is a class token, or the output is not feature maps.
    """

    def __init__(self, window_size: int | tuple[int, int], global_layers: list[int], **kwargs) -> None:
        kwargs = dict(with_cls_token=False, out_type='featmap') | kwargs
        super().__init__(**kwargs)
        if self.with_cls_token or self.out_type != 'featmap' or not self.final_norm:
            raise ValueError("WindowedViT needs with_cls_token=False, out_type='featmap' and final_norm=True")
        self.window_size = (window_size, window_size) if isinstance(window_size, int) else tuple(window_size)
        self.global_layers = {range(self.num_layers)[index] for index in global_layers}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x (Tensor): Images, ``(batch, 3, height, width)``.

        Returns:
            tuple[Tensor, ...]: For each of ``out_indices`` a map ``(batch, channels, rows, columns)``, in
            channels-last memory.
        """
        batch = x.shape[0]  # of the input: further down, an export to ONNX takes it for a constant
        x, size = self.patch_embed(x)
        x = x + resize_pos_embed(self.pos_embed, self.patch_resolution, size, self.interpolate_mode, 0)
        windows = Windows(size, self.window_size, x.device)
        x = windows.split(self.pre_norm(self.drop_after_pos(x)).unflatten(1, size))
        local_mask, global_mask = windows.masks(batch)

        maps = []
        for index, layer in enumerate(self.layers):
            if index in self.global_layers:
                x = _run_layer(layer, x.flatten(1, 2), global_mask).view_as(x)
            else:
                x = _run_layer(layer, x.flatten(0, 1), local_mask).view_as(x)
            if index in self.out_indices:
                maps.append(windows.join(self.ln1(x)).permute(0, 3, 1, 2))
        return tuple(maps)


class Windows:
    """Cut maps of one size into equal windows and put them together again.

    Args:
        size (tuple[int, int]): Rows and columns of the maps.
        largest (tuple[int, int]): Most rows and columns of a window.
        device (torch.device): Where the masks are needed.
    """

    def __init__(self, size: tuple[int, int], largest: tuple[int, int], device: torch.device) -> None:
        self.size = size
        # rounded up in integers: an export to ONNX follows them and not math.ceil, nor negative ones
        self.number = tuple((s + most - 1) // most for s, most in zip(size, largest, strict=True))
        self.side = tuple((s + n - 1) // n for s, n in zip(size, self.number, strict=True))
        rows, columns = (n * s for n, s in zip(self.number, self.side, strict=True))
        self.padding = (0, 0, 0, columns - size[1], 0, rows - size[0])
        # an exported graph has to serve sizes that come out even and others
        self.is_padded = torch.onnx.is_in_onnx_export() or any(self.padding)
        self.device = device

    def split(self, x: Tensor) -> Tensor:
        """``(batch, rows, columns, channels)`` to ``(batch, windows, tokens of a window, channels)``."""
        if self.is_padded:
            x = F.pad(x, self.padding)
        x = x.unflatten(2, (self.number[1], self.side[1])).unflatten(1, (self.number[0], self.side[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """``(batch, windows, tokens of a window, channels)`` to ``(batch, rows, columns, channels)``."""
        x = x.unflatten(2, self.side).unflatten(1, self.number)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :self.size[0], :self.size[1]]

    def masks(self, batch: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Which tokens take part: False for those that were added. None when there are none.

        Args:
            batch (int): Number of maps.

        Returns:
            tuple[Tensor, Tensor]: For attention inside windows, ``(batch x windows, 1, 1, tokens of a window)``, and
            to the whole map, ``(1, 1, 1, all tokens)``.
        """
        if not self.is_padded:
            return None, None
        takes_part = self.split(torch.ones(1, *self.size, 1, dtype=torch.bool, device=self.device))[..., 0]
        return takes_part.repeat(batch, 1, 1).flatten(0, 1)[:, None, None], takes_part.view(1, 1, 1, -1)


def _run_layer(layer: nn.Module, x: Tensor, takes_part: Tensor | None) -> Tensor:
    """A ``TransformerEncoderLayer`` of mmpretrain with a mask, and without three copies of qkv's gradient."""
    attn = layer.attn
    q, k, v = attn.qkv(layer.ln1(x)).unflatten(-1, (3, attn.num_heads, -1)).transpose(1, 3).unbind(2)
    out = F.scaled_dot_product_attention(q, k, v, takes_part, dropout_p=attn.attn_drop if layer.training else 0.0)
    out = attn.proj(out.transpose(1, 2).flatten(2))
    x = x + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
    return layer.ffn(layer.ln2(x), identity=x)
