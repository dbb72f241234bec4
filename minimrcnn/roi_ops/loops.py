"""RoIPool, RoIWarp and RoIAlign as their definitions read: one RoI, one bin, one point at a time.

For eyes and for tests: thousands of times slower than their vectorised twins in pool.py, warp.py and
align.py. Autograd works through them.

A cell is one position of the map; cell i has its value at coordinate i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minimrcnn.roi_ops.rois import REDUCE, check_rois, one_of


def round_half_away(x: float) -> int:
    """The nearest whole number, 2.5 to 3 and -2.5 to -3: C's round. Python's own would give 2 and -2."""
    whole = math.trunc(x)
    return whole + int(math.copysign(abs(x - whole) >= 0.5, x))


def rounded_roi(corners: Sequence[float], spatial_scale: float) -> tuple[int, int, int, int]:
    """The first rounding of RoIPool: (left, top, width, height) in whole cells, both ends included."""
    x1, y1, x2, y2 = (round_half_away(c * spatial_scale) for c in corners)
    return x1, y1, max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)


def bin_cells(start: int, length: int, bins: int, i: int, size: int) -> range:
    """The second rounding of RoIPool: the cells of bin i along one axis of a map of `size` cells.

    From the floor of its beginning to the ceiling of its end, so that neighbouring bins may share a cell.
    """
    low, high = (i * length) // bins, -(-(i + 1) * length // bins)
    return range(min(max(start + low, 0), size), min(max(start + high, 0), size))


def no_crops(features: Tensor, count: int, output_size: tuple[int, int]) -> Tensor:
    """Zeros (count, C, height, width) that hang on the features: crops off the map have a gradient, 0."""
    return features.new_zeros(count, features.shape[1], *output_size) + features[:0].sum()


def roi_pool_loop(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoIPool (Fast R-CNN, section 2.1). Arguments and result as in `roi_pool`."""
    rois, (height, width) = check_rois(features, rois, output_size, spatial_scale)
    crops = no_crops(features, len(rois), (height, width))
    for r, (picture, *corners) in enumerate(rois.tolist()):
        left, top, roi_width, roi_height = rounded_roi(corners, spatial_scale)
        for i in range(height):
            ys = bin_cells(top, roi_height, height, i, features.shape[2])
            for j in range(width):
                xs = bin_cells(left, roi_width, width, j, features.shape[3])
                if len(ys) and len(xs):  # a bin off the map stays 0
                    window = features[int(picture), :, ys.start : ys.stop, xs.start : xs.stop]
                    crops[r, :, i, j] = window.flatten(1).max(dim=1).values
    return crops


def bilinear(features: Tensor, y: float, x: float) -> Tensor:
    """The value (C,) of one picture's map (C, H, W) between its cells.

    Up to one cell outside the map the border's value holds, farther out 0: Detectron's rule.
    """
    height, width = features.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return features.new_zeros(len(features))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = features[:, top, left] * (1 - dx) + features[:, top, right] * dx
    below = features[:, bottom, left] * (1 - dx) + features[:, bottom, right] * dx
    return above * (1 - dy) + below * dy


def points_along(start: float, length: float, bins: int, i: int, sampling_ratio: int) -> list[float]:
    """Where bin i of an axis is sampled: in the middle of each of its `sampling_ratio` equal parts.

    The adaptive ratio, 0 or less, takes one part a cell, rounded up; a RoI that is empty then has no point.
    """
    bin_length = length / bins
    count = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_length)
    return [start + i * bin_length + (p + 0.5) * bin_length / count for p in range(count)]


def sample_roi(
    features: Tensor,
    start: tuple[float, float],
    length: tuple[float, float],
    output_size: tuple[int, int],
    sampling_ratio: int,
    reduce: str,
) -> Tensor:
    """One crop (C, height, width) of one picture's map (C, H, W); start, length: (x, y) in cells."""
    height, width = output_size
    crop = features.new_zeros(len(features), height, width)
    for i in range(height):
        ys = points_along(start[1], length[1], height, i, sampling_ratio)
        for j in range(width):
            xs = points_along(start[0], length[0], width, j, sampling_ratio)
            if len(ys) and len(xs):
                values = torch.stack([bilinear(features, y, x) for y in ys for x in xs])  # (points, C)
                crop[:, i, j] = values.mean(dim=0) if reduce == "average" else values.max(dim=0).values
    return crop


def roi_warp_loop(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduce: str = "average",
) -> Tensor:
    """RoIWarp: bilinear sampling, but on RoIPool's rounded RoI. Arguments and result as in `roi_warp`.

    The RoI covers the whole cells `left` to `right`. Cell i has its value at i, so it reaches from
    i - .5 to i + .5, and the RoI from left - .5 to right + .5.
    """
    rois, pair = check_rois(features, rois, output_size, spatial_scale, sampling_ratio)
    one_of(reduce, REDUCE, "reduce")
    crops = no_crops(features, len(rois), pair)
    for r, (picture, *corners) in enumerate(rois.tolist()):
        left, top, width, height = rounded_roi(corners, spatial_scale)
        start = (left - 0.5, top - 0.5)
        crops[r] = sample_roi(features[int(picture)], start, (width, height), pair, sampling_ratio, reduce)
    return crops


def roi_align_loop(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    reduce: str = "average",
) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3): nothing is rounded. Arguments and result as in `roi_align`."""
    rois, pair = check_rois(features, rois, output_size, spatial_scale, sampling_ratio)
    one_of(reduce, REDUCE, "reduce")
    crops = no_crops(features, len(rois), pair)
    for r, (picture, *corners) in enumerate(rois.tolist()):
        # Pixel i covers i to i + 1 and has its value at its centre, i + .5: `aligned` shifts by that half.
        x1, y1, x2, y2 = (c * spatial_scale - 0.5 * aligned for c in corners)
        length = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        crops[r] = sample_roi(features[int(picture)], (x1, y1), length, pair, sampling_ratio, reduce)
    return crops
