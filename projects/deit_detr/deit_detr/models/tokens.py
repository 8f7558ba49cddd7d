"""Positions of the tokens of several flattened maps, computed on the host from the sizes of maps and images."""

import numpy as np
import torch
from mmdet.structures import SampleList
from torch import Tensor

from deit_detr.models.box_ops import to_device


def map_sizes(shapes: list[tuple[int, int]]) -> np.ndarray:
    """Return (columns, rows) of maps of (rows, columns), float32 ``(maps, 2)``."""
    return np.array([shape[::-1] for shape in shapes], np.float32)


def token_centres(shapes: list[tuple[int, int]]) -> np.ndarray:
    """Return the centre (x, y) of each token in tokens of its map, float32 ``(tokens of all maps, 2)``.

    Args:
        shapes (list[tuple[int, int]]): (rows, columns) of each map.
    """
    return np.concatenate([
        np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) for rows, columns in shapes
    ]).astype(np.float32) + np.float32(0.5)


def valid_tokens(batch_data_samples: SampleList, shapes: list[tuple[int, int]]) -> np.ndarray:
    """Return how many columns and rows of each map are inside each image, float32 ``(images, maps, 2)``.

    A token is inside if the pixel nearest to its corner is, as where mmdet resizes a mask of pixels.

    Args:
        batch_data_samples (list[DetDataSample]): With ``img_shape`` and ``batch_input_shape``.
        shapes (list[tuple[int, int]]): (rows, columns) of each map.
    """
    valid = np.empty((len(batch_data_samples), len(shapes), 2), np.float32)
    for axis, whole in enumerate(batch_data_samples[0].batch_input_shape):
        sides = np.array([sample.img_shape[axis] for sample in batch_data_samples])
        for level, shape in enumerate(shapes):
            pixels = np.arange(shape[axis], dtype=np.float32) * (np.float32(whole) / np.float32(shape[axis]))
            valid[:, level, 1 - axis] = (np.minimum(pixels.astype(int), whole - 1) < sides[:, None]).sum(1)
    return valid


def odd_numbers(shapes: list[tuple[int, int]] | Tensor, device: torch.device) -> Tensor:
    """Return twice the centre (x, y) of each token, ``2 * index + 1``, int64 ``(tokens of all maps, 2)``.

    Args:
        shapes (list[tuple[int, int]]): (rows, columns) of each map; a tensor in ONNX export.
        device (torch.device): Device of the result.
    """
    if not isinstance(shapes, Tensor):
        return to_device((2 * token_centres(shapes)).astype(np.int64), device)
    grids = [torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij') for rows, columns in shapes]
    return torch.cat([torch.stack([x, y], -1).flatten(0, 1) for y, x in grids]) * 2 + 1


def inside_limits(odd: Tensor, sizes: Tensor) -> Tensor:
    """Return whether tokens are strictly inside (0.01, 0.99) of an image, as mmdet decides where to make proposals.

    mmdet compares ``(index + 0.5) / size`` in float32, which is on the limit where 100 * (index + 0.5) is ``size`` or
    99 times that: the last of 50 rows. A quotient with another last bit would change sides. Whole numbers are never
    rounded, and the result is mmdet's for all sizes up to 4096 (``test_proposals_are_where_mmdet_makes_them``).

    Args:
        odd (Tensor): See :func:`odd_numbers`, int64 ``(..., 2)``.
        sizes (Tensor): Columns and rows of the image, int64, broadcast against ``odd``.

    Returns:
        Tensor: bool, ``(...)``.
    """
    return ((odd * 50 > sizes) & (odd * 50 < sizes * 99)).all(-1)


def per_token(x: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """Repeat the values of each map for its tokens: ``(images, maps, channels)`` to ``(images, tokens, channels)``."""
    return torch.cat([
        of_map[:, None].expand(-1, rows * columns, -1)
        for of_map, (rows, columns) in zip(x.unbind(1), shapes, strict=True)], 1)


def sine_periods(num_feats: int, temperature: float, device: torch.device) -> Tensor:
    """Return the periods of mmdet's positional encodings, divided by 2 pi, ``(num_feats,)``.

    Args:
        num_feats (int): Channels of each coordinate.
        temperature (float): The longest of them.
        device (torch.device): Device of the result.
    """
    periods = torch.arange(num_feats, dtype=torch.float32, device=device)
    return temperature ** (2 * (periods // 2) / num_feats)


def sine_encoding(points: Tensor, periods: Tensor) -> Tensor:
    """Return sines and cosines of coordinates as mmdet's positional encodings do.

    Args:
        points (Tensor): Scaled coordinates, ``(images, points, coordinates)``.
        periods (Tensor): See :func:`sine_periods`.

    Returns:
        Tensor: ``(images, points, coordinates * num_feats)``, in the order of the coordinates.
    """
    angles = points[..., None] / periods
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(2)


def encode_boxes(boxes: Tensor, periods: Tensor) -> Tensor:
    """Return the encoding of mmdet's ``coordinate_to_encoding``: y, x, w and h.

    Args:
        boxes (Tensor): Normalized boxes (cx, cy, w, h) or points (x, y), ``(images, queries, 4 or 2)``.
        periods (Tensor): See :func:`sine_periods`.

    Returns:
        Tensor: ``(images, queries, 4 or 2 times num_feats)``.
    """
    angles = 2 * torch.pi * boxes
    # not tensor_split(), which becomes a loop over a sequence in ONNX: OpenVINO does not read it
    return sine_encoding(torch.cat([angles[..., 1:2], angles[..., :1], angles[..., 2:]], -1), periods)
