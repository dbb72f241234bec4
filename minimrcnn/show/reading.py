"""What an operation reads: the RoI it works with, its bins and its sampling points, along one axis.

The operations give crops and keep the way there to themselves; the pictures need the way. The tests hold
both together: the crop put together from these numbers is the operation's.

Pixel i of the picture covers [i, i + 1), and cell i of a map of stride s covers [i * s, (i + 1) * s). Its
value belongs to the middle. A position "in cells" counts so that cell i has its value at i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
TITLES = {"roi_pool": "RoIPool", "roi_warp": "RoIWarp", "roi_align": "RoIAlign"}


@dataclass(frozen=True)
class Axis:
    """One axis of what an operation reads.

    Attributes:
        bins: (P, 2) where each bin begins and ends, pixels of the picture.
        points: (P, S) sampling points of each bin, in cells; S = 0 for RoIPool, which reads whole cells.
    """

    bins: Array
    points: Array

    @property
    def extent(self) -> tuple[float, float]:
        """Where the RoI that is read begins and ends, pixels of the picture."""
        return float(self.bins[0, 0]), float(self.bins[-1, 1])


def read_axis(
    name: str, low: float, high: float, bins: int, stride: int, sampling_ratio: int, aligned: bool
) -> Axis:
    """What the operation `name` reads of a RoI from `low` to `high` pixels with `bins` bins.

    float32 throughout, as in the operations: where a border is rounded hangs on the last bit.
    """
    scale = np.float32(1 / stride)
    start, end = np.float32(low) * scale, np.float32(high) * scale
    if name == "roi_align":
        return _aligned_axis(start, end, bins, stride, sampling_ratio, aligned)
    start, end = _round(start), _round(end)
    length = np.maximum(end - start + 1, np.float32(1))  # cells start..end, both counted
    if name == "roi_warp":
        return _sampled(start, length, bins, stride, sampling_ratio)
    size = length / np.float32(bins)
    index = np.arange(bins, dtype=np.float32)
    # The second rounding: outwards on both sides, so that neighbouring bins may share a cell.
    first, past = np.floor(index * size) + start, np.ceil((index + 1) * size) + start
    return Axis(np.stack([first, past], axis=1) * stride, np.zeros((bins, 0)))


def _aligned_axis(
    start: np.float32, end: np.float32, bins: int, stride: int, ratio: int, aligned: bool
) -> Axis:
    if aligned:
        return _sampled(start, end - start, bins, stride, ratio)
    # Without the half cell a coordinate of the picture is taken for a position in cells: what is read
    # lies half a cell farther right. And no RoI is smaller than a cell.
    half = np.float32(0.5)
    return _sampled(start + half, np.maximum(end - start, np.float32(1)), bins, stride, ratio)


def _sampled(start: np.float32, length: np.float32, bins: int, stride: int, ratio: int) -> Axis:
    """Bins of equal size with sampling points inside; start: in the picture's coordinates / stride."""
    count = ratio if ratio > 0 else max(int(np.ceil(length / bins)), 0)
    size = length / np.float32(bins)
    index = np.arange(bins, dtype=np.float32)[:, None]
    point = np.arange(count, dtype=np.float32)
    points = start - np.float32(0.5) + index * size + (point + np.float32(0.5)) * size / max(count, 1)
    edges = (start + np.arange(bins + 1, dtype=np.float32) * size) * stride
    return Axis(np.stack([edges[:-1], edges[1:]], axis=1), points)


def _round(cells: np.float32) -> np.float32:
    """To the nearest cell, a half away from zero: C's round, which all RoIPools use (numpy's is to even)."""
    return np.trunc(cells + np.copysign(np.float32(0.5), cells))


def neighbours(position: float, size: int) -> list[tuple[int, float]]:
    """The cells that bilinear interpolation reads along one axis, and their weights.

    position: in cells. size: cells along the axis. Within one cell outside the map the border's value
    holds, farther out nothing is read: an empty list, and the point counts as zero.
    """
    if not -1 <= position <= size:
        return []
    position = min(max(position, 0.0), size - 1.0)
    low = int(position)
    share = position - low
    return [(low, 1 - share), (low + 1, share)] if share > 0 else [(low, 1.0)]


# ---------------------------------------------------------------- what may be asked for


def check_roi(roi: Sequence[float]) -> tuple[float, float, float, float]:
    """The four numbers of a RoI. Raises ValueError if they are none, not finite, or inside out."""
    values = tuple(float(value) for value in roi)
    if len(values) != 4:
        raise ValueError(
            f"a RoI is (x1, y1, x2, y2) in pixels of the picture; this one has {len(values)} numbers"
        )
    for name, value in zip(("x1", "y1", "x2", "y2"), values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"RoI {values}: {name} is {value}, which is no place in a picture")
    x1, y1, x2, y2 = values
    if x2 < x1 or y2 < y1:
        raise ValueError(f"RoI {values} is inside out: x1 <= x2 and y1 <= y2 are needed")
    return values


def check_stride(stride: int) -> int:
    """Raises ValueError if it is no whole number of pixels."""
    if not isinstance(stride, int) or stride < 1:
        raise ValueError(f"stride is the pixels a cell, a whole number from 1 on; got {stride!r}")
    return stride
