"""The assignment problems of a batch, solved on the GPU as SciPy solves them on the CPU.

One Triton program solves one problem with the shortest augmenting paths of SciPy's ``linear_sum_assignment`` (Crouse,
IEEE Trans. Aerospace and Electronic Systems 52, 2016): same order, same ties and float64, so the matches are the same.
All its state is in registers, up to 2048 queries or boxes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def match_on_device(costs: Tensor, num_gts: Tensor, starts: Tensor, num_per_layer: int) -> Tensor:
    """Solve the problems of :func:`~deit_detr.models.matching.match` without a wait for the device.

    Args:
        costs (Tensor): ``(layers, images, most boxes, queries)``, float32.
        num_gts (Tensor): Number of boxes of each image, int64 ``(images,)``.
        starts (Tensor): Number of matches in the images before, int64 ``(images,)``.
        num_per_layer (int): Number of matches in each layer.

    Returns:
        Tensor: Layer, image, query and box of each match, in the order of ``match``: int64 ``(4, matches)``.
    """
    num_layers, num_images, most_boxes, num_queries = costs.shape
    out = num_gts.new_empty(4, num_layers * num_per_layer)
    if out.numel():
        # powers of two from 64 on: each pair of sizes is compiled once, in about a second
        rows, columns = (max(64, triton.next_power_of_2(pick(most_boxes, num_queries))) for pick in (min, max))
        with torch.cuda.device_of(costs):
            _solve[(num_layers * num_images,)](
                costs.contiguous(), num_gts, starts, out, num_images, most_boxes, num_queries, num_per_layer,
                out.shape[1], ROWS=rows, COLUMNS=columns, num_warps=min(max(columns // 128, 1), 8))
    return out


@triton.jit(do_not_specialize=['num_images', 'most_boxes', 'num_queries', 'num_per_layer', 'num_matches'])
def _solve(
    costs, num_gts, starts, out, num_images, most_boxes, num_queries, num_per_layer, num_matches,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    layer, image = tl.program_id(0) // num_images, tl.program_id(0) % num_images
    num_boxes = tl.load(num_gts + image).to(tl.int32)
    rows_are_boxes = num_boxes < num_queries
    num_rows, num_columns = tl.minimum(num_boxes, num_queries), tl.maximum(num_boxes, num_queries)
    row_stride, column_stride = tl.where(rows_are_boxes, num_queries, 1), tl.where(rows_are_boxes, 1, num_queries)
    costs += tl.program_id(0).to(tl.int64) * most_boxes * num_queries
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    u, v = tl.zeros([ROWS], tl.float64), tl.zeros([COLUMNS], tl.float64)  # the dual variables
    column_of, row_of = tl.full([ROWS], -1, tl.int32), tl.full([COLUMNS], -1, tl.int32)

    current = 0
    while current < num_rows:
        # find the shortest augmenting path from the row to a free column
        shortest = tl.full([COLUMNS], float('inf'), tl.float64)
        when_entered = tl.zeros([ROWS], tl.float64)
        came_from = tl.full([COLUMNS], -1, tl.int32)
        # SciPy lists the remaining columns, last first; where one is taken out, the last of the list goes
        place, remaining, num_remaining = num_columns - 1 - column, column < num_columns, num_columns
        searched = row == current
        length = tl.cast(0.0, tl.float64)
        i, end = current, -1
        while end < 0:
            cost = tl.load(costs + i * row_stride + column * column_stride, mask=remaining, other=0.0)
            cost = tl.where(tl.abs(cost) < float('inf'), cost, -1e9).to(tl.float64)  # as assign() does
            reduced = length + cost - tl.sum(tl.where(row == i, u, 0.0)) - v
            shorter = remaining & (reduced < shortest)
            shortest = tl.where(shorter, reduced, shortest)
            came_from = tl.where(shorter, i, came_from)
            length = tl.min(tl.where(remaining, shortest, float('inf')))
            # of equals, SciPy takes the free column that it lists last, without one the first of all
            rank = tl.where(row_of < 0, num_columns + place, num_columns - 1 - place)
            best = tl.max(tl.where(remaining & (shortest == length), rank * COLUMNS + column, -1))
            taken, rank = best % COLUMNS, best // COLUMNS
            gap = tl.where(rank < num_columns, num_columns - 1 - rank, rank - num_columns)
            num_remaining -= 1
            remaining = remaining & (column != taken)
            place = tl.where(remaining & (place == num_remaining), gap, place)
            i = tl.sum(tl.where(column == taken, row_of, 0))
            end = tl.where(i < 0, taken, -1)
            searched = searched | (row == i)
            when_entered = tl.where(row == i, length, when_entered)
        u = tl.where(searched, u + (length - when_entered), u)
        v = tl.where(remaining | (column >= num_columns), v, v - (length - shortest))
        # match along the path
        i = -1
        while i != current:
            i = tl.sum(tl.where(column == end, came_from, 0))
            before = tl.sum(tl.where(row == i, column_of, 0))
            row_of = tl.where(column == end, i, row_of)
            column_of = tl.where(row == i, end, column_of)
            end = before
        current += 1

    out += layer * num_per_layer + tl.load(starts + image)
    if rows_are_boxes:
        matched = (row_of >= 0).to(tl.int32)
        _store(out + tl.cumsum(matched) - 1, num_matches, layer, image, column, row_of, matched > 0)
    else:
        _store(out + row, num_matches, layer, image, row, column_of, row < num_rows)


@triton.jit
def _store(out, num_matches, layer, image, query, box, mask):
    tl.store(out, layer, mask=mask)
    tl.store(out + num_matches, image, mask=mask)
    tl.store(out + 2 * num_matches, query, mask=mask)
    tl.store(out + 3 * num_matches, box, mask=mask)
