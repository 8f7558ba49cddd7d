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
    the size does not divide, windows are filled up and masked for attention; all else computes real tokens only, and
    global layers need no mask, so that attention takes its fastest kernel.

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
        x = self.pre_norm(self.drop_after_pos(x.contiguous()))  # patch_embed's order would stay to the last layer
        windows = self.windows(size, x.device)
        of_layer = () if windows.is_map else (windows, windows.mask(batch))

        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x, *(() if index in self.global_layers else of_layer))
            if index in self.out_indices:
                features = (self.ln1(x) if self.final_norm else x).unflatten(1, size)
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
        device (torch.device): Device of the maps.

    Attributes:
        number (int): Windows of a map.
        side (tuple[int, int]): Rows and columns of a window.
        place (Tensor): Place of each token in the windows, int64 ``(tokens of a map,)``.
        token (Tensor): Token at each place, int64 ``(windows x tokens of a window,)``; -1 where there is none.
        is_map (bool): Whether the only window is the map.
    """

    def __init__(self, size: tuple[int, int], largest: tuple[int, int], device: torch.device) -> None:
        # rounded up in integers: ONNX export traces these, but neither math.ceil nor negative division
        numbers = tuple((s + most - 1) // most for s, most in zip(size, largest, strict=True))
        self.side = rows, columns = tuple((s + n - 1) // n for s, n in zip(size, numbers, strict=True))
        self.number = numbers[0] * numbers[1]
        y, x = torch.arange(size[0], device=device)[:, None], torch.arange(size[1], device=device)
        window, within = y // rows * numbers[1] + x // columns, y % rows * columns + x % columns
        self.place = (window * (rows * columns) + within).flatten()
        places = torch.full((self.number * rows * columns,), -1, dtype=torch.int64, device=device)
        self.token = places.scatter(0, self.place, torch.arange(size[0] * size[1], device=device))
        # an exported graph has to support all sizes
        is_traced = torch.onnx.is_in_onnx_export()
        self.is_map = not is_traced and self.number == 1
        self.is_filled_up = is_traced or len(self.token) > len(self.place)

    def split(self, x: Tensor) -> Tensor:
        """Split ``(batch, tokens, channels)`` to ``(batch x windows, tokens of a window, channels)``."""
        return x.index_select(1, self.token.clamp(min=0)).reshape(-1, self.side[0] * self.side[1], x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Join ``(batch x windows, tokens of a window, channels)`` to ``(batch, tokens, channels)``."""
        return x.reshape(-1, self.number * self.side[0] * self.side[1], x.shape[-1]).index_select(1, self.place)

    def mask(self, batch: int) -> Tensor | None:
        """Return the attention mask of all windows, False where there is no token; None if there is one everywhere.

        Args:
            batch (int): Number of maps.

        Returns:
            Tensor | None: ``(batch x windows, 1, 1, tokens of a window)``.
        """
        if not self.is_filled_up:
            return None
        takes_part = (self.token >= 0).reshape(1, self.number, -1)
        return takes_part.repeat(batch, 1, 1).flatten(0, 1)[:, None, None]


class WindowedLayer(TransformerEncoderLayer):
    """mmpretrain's ``TransformerEncoderLayer`` on windows, and without three copies of qkv's gradient."""

    def forward(self, x: Tensor, windows: Windows | None = None, takes_part: Tensor | None = None) -> Tensor:
        """Return the next states.

        Args:
            x (Tensor): ``(batch, tokens, channels)``.
            windows (Windows, optional): Which tokens attend to one another. Default: all.
            takes_part (Tensor, optional): Mask of the windows, see :meth:`Windows.mask`.

        Returns:
            Tensor: As ``x``.
        """
        attn = self.attn
        qkv = attn.qkv(self.ln1(x))
        qkv = qkv if windows is None else windows.split(qkv)
        q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(q, k, v, takes_part, dropout_p=attn.attn_drop if self.training else 0.0)
        out = out.transpose(1, 2).flatten(2)
        out = attn.proj(out if windows is None else windows.join(out))
        x = x + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
        return self.ffn(self.ln2(x), identity=x)
