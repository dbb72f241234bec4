"""Where RoIs are sampled, and which cells of the map that reads with which weights.

A RoI is cut into bins, a bin is read at a few points, and each point lies between 2 cells along each axis.
A bilinear weight is a product, one factor an axis: x and y are worked out alone (`sample_points`,
`neighbours`) and multiplied at the end (`taps`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minimrcnn.structures import constant

CHUNK = 1 << 19  # cells that are read at one time: 4 MB of indices and weights


def sample_points(
    start: Tensor, step: Tensor, bins: int, counts: Tensor | int, most: int
) -> tuple[Tensor, Tensor]:
    """Where RoIs are sampled along an axis, in cells of the map.

    Args:
        start, step: (...) where each RoI begins, and how long its bins are.
        counts: sampling points a bin, one number or (...) int64; most: the largest of them.

    Returns:
        positions (..., bins, most); and what each counts for, 1 / count, and 0 past a RoI's own count, in a
        shape that broadcasts against them.
    """
    start, step = start[..., None, None], step[..., None, None]  # (..., 1, 1)
    number = constant(tuple(range(bins)), start.device, start.dtype)[:, None]
    middle = constant(tuple(point + 0.5 for point in range(most)), start.device, start.dtype)
    if isinstance(counts, Tensor):
        taken = (middle < counts[..., None, None]).to(start.dtype)
        counts = counts[..., None, None].clamp(min=1)
        share = taken / counts
    else:
        share = constant((1 / counts,), start.device, start.dtype)
    # In this order, for the last bit: one cell outside the map RoIAlign jumps to 0.
    return start + number * step + middle * step / counts, share


def neighbours(positions: Tensor, weights: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells on either side of each position, and what each contributes.

    Cell i has its value at coordinate i. Up to one cell outside the map the border's value is used,
    farther out a point counts as zero: Detectron's rule, which all implementations share.

    Args:
        positions, weights: (..., P, S); size: cells along the axis, broadcast against them.

    Returns:
        (..., P, K) int32 indices and weights. K is 2S, or less where the points of a bin share cells.
    """
    weights = weights * ((positions >= -1) & (positions <= size))
    positions, last = positions.clamp(min=0).clamp(max=size - 1), (size - 1).to(torch.int32)
    low = positions.to(torch.int32)  # the floor of what is not negative; torch.floor would wake all threads
    if positions.device.type == "cpu" and positions.numel():  # a GPU's host would have to wait for `reach`
        one, other = low[..., :1], low[..., -1:]  # (..., P, 1), the outermost points
        reach = int((one - other).abs().amax()) + 2
        if reach < 2 * positions.shape[-1]:
            cells = torch.minimum(one, other) + torch.arange(reach, dtype=low.dtype)  # (..., P, reach)
            share = (1 - (positions[..., None, :] - cells[..., None]).abs()).clamp(min=0)  # bilinear: a tent
            share = (weights[..., None, :] * share).sum(dim=-1)
            return torch.minimum(cells, last), share
    upper = weights * (positions - low)  # the share of the high neighbour
    index = torch.cat([low, torch.minimum(low + 1, last)], dim=-1)
    return index, torch.cat([weights - upper, upper], dim=-1)


def adaptive_points(step: Tensor) -> Tensor:
    """The adaptive sampling ratio: as many points a bin as it has cells, rounded up; int64, as `step`.

    An aligned RoI may be empty or inside out: no points then, so that its bins are 0.
    """
    return torch.ceil(step).clamp(min=0).to(torch.int64)


def extent(low: Tensor, high: Tensor, aligned: bool) -> tuple[Tensor, Tensor]:
    """Where RoIs from `low` to `high`, in cells, begin to be sampled, and over which length."""
    if aligned:
        # Pixel i covers [i, i+1) and has its value at its centre, i + .5: shift by that half.
        low, high = low - 0.5, high - 0.5
        return low, high - low
    return low, (high - low).clamp(min=1)


def axis(
    low: Tensor, high: Tensor, bins: int, sampling_ratio: int, aligned: bool, size: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Indices and weights along axes, (..., bins, K) each, for RoIs from `low` to `high` (...) in cells.

    `most` is the largest number of points a bin that any of the RoIs may need. A RoI that reaches farther
    over the picture makes do with it: points counted but not taken would lose their weight.
    """
    start, length = extent(low, high, aligned)
    step = length / bins
    counts = sampling_ratio if sampling_ratio > 0 else adaptive_points(step).clamp(max=most)
    return neighbours(*sample_points(start, step, bins, counts, most), size)


def taps(
    start: Tensor,
    step: Tensor,
    batch: Tensor,
    size: tuple[int, int],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """All cells that RoIs read from one map, and their weights.

    Args:
        start, step: (n, 2), x and y, where each RoI begins and how long its bins are, in cells.
        batch: (n,) pictures. size: (H, W) of the map.

    Returns:
        index (n * height * width, K) int32, (picture * H + y) * W + x, and weight of the same shape.
    """
    height, width = output_size
    counts = most = sampling_ratio
    if sampling_ratio <= 0:
        counts = adaptive_points(step)
        most = max(int(counts.amax()), 1)
    # Both axes at once: (n, 2, bins, K), with the longer side's number of bins.
    cells = constant((size[1], size[0]), start.device)[:, None, None]
    both, weight = neighbours(*sample_points(start, step, max(height, width), counts, most), cells)
    x, y = both[:, 0, :width], both[:, 1, :height]
    row = (batch.to(y.dtype)[:, None, None] * size[0] + y) * size[1]  # (n, height, K)
    index = every_pair(row, x, torch.add)
    return index, every_pair(weight[:, 1, :height], weight[:, 0, :width], torch.mul)


def every_pair(y: Tensor, x: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine each row of a bin with each of its columns.

    (n, height, K) and (n, width, K) to (n * height * width, K * K).
    """
    k = x.shape[-1]
    # All pairs of a bin in one run: that goes fast. x.repeat would copy them k numbers at a time.
    y, x = y.repeat_interleave(k, dim=-1), torch.cat([x] * k, dim=-1)
    return combine(y[:, :, None], x[:, None]).flatten(0, 2)


def chunks(rows: Tensor, step: Tensor, bins: int, sampling_ratio: int) -> Iterator[Tensor | slice]:
    """RoIs `rows` (n,) in parts that read about CHUNK cells each; step: (R, 2) of all RoIs, in cells."""
    sides = [2 * sampling_ratio] * len(rows)  # cells that are read along a side of a bin
    order = rows
    if sampling_ratio <= 0:
        # Every RoI of a part is given as many points as its longest: put those of a size together.
        points, place = adaptive_points(step[rows]).amax(dim=1).sort(descending=True)
        order, sides = rows[place], (points + 1).tolist()
    begin = 0
    while begin < len(rows):
        count = max(CHUNK // (bins * sides[begin] ** 2), 1)
        all_of_them = count >= len(rows) and len(rows) == len(step)
        yield slice(None) if all_of_them else order[begin : begin + count]  # a slice copies nothing
        begin += count
