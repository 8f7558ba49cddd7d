"""Convolution at selected places of a map: windows to columns, and columns back to places."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    features: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, data_col: Tensor, kernel_h: int, kernel_w: int,
    pad_h: int, pad_w: int) -> None:
    """Copy windows of one image's map, padded with zeros, to columns.

    Args:
        features (Tensor): ``(1, channels, height, width)``.
        mask_h_idx (Tensor): First row of each window in the padded map, int64 ``(places,)``.
        mask_w_idx (Tensor): First column of each window, int64 ``(places,)``.
        data_col (Tensor): Receives the windows, ``(channels * kernel_h * kernel_w, places)``.
        kernel_h (int): Height of a window.
        kernel_w (int): Width of a window.
        pad_h (int): Rows of zeros above.
        pad_w (int): Columns of zeros on the left.
    """
    padded = F.pad(features[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=features.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int) -> None:
    """Write columns to their places in a map.

    Args:
        col (Tensor): ``(channels, places)``.
        mask_h_idx (Tensor): Rows in 0..height - 1, int64 ``(places,)``.
        mask_w_idx (Tensor): Columns in 0..width - 1, int64 ``(places,)``.
        im (Tensor): Receives the columns, ``(1, channels, height, width)``.
        height (int): Rows of the map.
        width (int): Columns of the map.
        channels (int): Channels of the map.

    Raises:
        ValueError: If a place is outside the map; the compiled operator would write out of bounds.
    """
    if mask_h_idx.numel() and bool((mask_h_idx.max() >= height) | (mask_w_idx.max() >= width)):
        raise ValueError(f'a place of the mask is outside the map of {height}x{width}')
    im[0, :, mask_h_idx, mask_w_idx] = col
