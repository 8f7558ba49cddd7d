"""Boxes as distributions over distances of their sides (D-FINE, arXiv 2410.13842).

Each side of a box is a distribution over ``bins + 1`` distances from the side of a reference box, see
:func:`bin_values`. A distance of 1 is ``1 / SCALE`` of the reference's width or height, outwards.
"""

import torch
from torch import Tensor

#: A quarter of the reference box is a distance of 1.
SCALE = 4.0
#: The largest distance but one is this part of the reference box, the largest twice as much.
REACH = 0.5


def bin_values(bins: int) -> Tensor:
    """Return the distances of all bins, float32 ``(bins + 1,)``: dense around 0, sparse far away.

    Args:
        bins (int): Number of intervals, even.
    """
    reach = REACH * SCALE
    step = (reach + 1) ** (2 / (bins - 2))
    positive = [step ** power - 1 for power in range(1, bins // 2)] + [2 * reach]
    return torch.tensor([-value for value in reversed(positive)] + [0.0, *positive])


def mean_distances(logits: Tensor, values: Tensor) -> Tensor:
    """Return the mean distance of each side, ``(..., 4)``.

    Args:
        logits (Tensor): ``(..., 4 * (bins + 1))``: left, top, right, bottom.
        values (Tensor): See :func:`bin_values`.
    """
    return logits.unflatten(-1, (4, -1)).softmax(-1) @ values


def move_sides(boxes: Tensor, distances: Tensor) -> Tensor:
    """Move the sides of boxes (cx, cy, w, h) outwards by distances (left, top, right, bottom), ``(..., 4)`` each."""
    centres, sides = boxes.split(2, -1)
    # divided after the split: OpenVINO 2026.4 fails where a scale follows the product with bin_values()
    first, last = (part / SCALE for part in distances.split(2, -1))
    return torch.cat([centres + (last - first) / 2 * sides, (1 + first + last) * sides], -1)


def side_targets(references: Tensor, corners: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bins on both sides of the true distances.

    Args:
        references (Tensor): Reference boxes (cx, cy, w, h), ``(..., 4)``.
        corners (Tensor): True boxes (x1, y1, x2, y2), ``(..., 4)``.
        values (Tensor): See :func:`bin_values`.

    Returns:
        tuple[Tensor, Tensor]: The bin below, int64 in 0..bins - 1, and the weight of the bin above, in 0..1,
        ``(..., 4)`` each. Distances beyond the last bin have all weight on it.
    """
    centres, sides = references.split(2, -1)
    first, last = corners.split(2, -1)
    scaled = sides / SCALE + 1e-16
    distances = torch.cat([(centres - first) / scaled, (last - centres) / scaled], -1) - SCALE / 2
    distances = distances.clamp(values[0], values[-1])
    below = torch.searchsorted(values, distances.contiguous(), right=True).sub_(1).clamp_(0, len(values) - 2)
    low, high = values[below], values[below + 1]
    return below, (distances - low) / (high - low)
