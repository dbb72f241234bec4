"""A mask as COCO writes it down, polygons or run lengths, as pixels inside its own tight box."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as rle_tools


def run_lengths(segmentation: list | dict, width: int, height: int) -> np.ndarray:
    """A mask as run lengths (R,) int64: off, on, off, ..., down the columns, left to right.

    Polygons are drawn by pycocotools; all of an annotation's polygons together are one object.

    Raises:
        ValueError: the runs do not make a picture of this size.
    """
    if isinstance(segmentation, list):
        if not all(np.abs(polygon).max(initial=0) < 1e6 for polygon in segmentation):
            raise ValueError("a coordinate is not finite, or beyond a million pixels")  # would crash C code
        segmentation = rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size [height, width] is {segmentation['size']}, not {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        runs = np.array(counts, dtype=np.int64)
    else:
        # COCO's compression: five bits a character, the lowest first, bit 5 says that more follow,
        # bit 4 of the last is the sign; from the fourth on, each run less the run two before it.
        text = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8)
        bits = text.astype(np.int64) - 48
        last = np.flatnonzero((bits & 32) == 0)
        first = np.concatenate([[0], last[:-1] + 1])
        shift = 5 * (np.arange(len(bits)) - np.repeat(first, last - first + 1))
        runs = np.add.reduceat((bits & 31) << shift, first)
        runs -= ((bits[last] >> 4) & 1) << (shift[last] + 5)
        runs[1::2] = runs[1::2].cumsum()
        runs[2::2] = runs[2::2].cumsum()
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its runs do not add up to {height} x {width} pixels")
    return runs


def rasterise(segmentation: list | dict | None, width: int, height: int) -> tuple[np.ndarray, list[int]]:
    """One annotation's mask, cut to its tight box: pixels (h, w) uint8 and the box x1 y1 x2 y2.

    Pixel for pixel pycocotools' `annToMask`, without unpacking the rest of the picture. A mask
    without any pixel is (0, 0) with the box 0 0 0 0.
    """
    runs = run_lengths(segmentation, width, height) if segmentation else np.zeros(0, np.int64)
    ends = runs.cumsum()
    on = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(on):
        return np.zeros((0, 0), np.uint8), [0, 0, 0, 0]
    (left, top), (right, bottom) = divmod(ends[on - 1], height), divmod(ends[on] - 1, height)  # inclusive
    x1, x2 = int(left[0]), int(right[-1]) + 1
    y1, y2 = int(top.min()), int(bottom.max()) + 1
    if (left != right).any():  # a run that goes on in the next column touches bottom and top
        y1, y2 = 0, height
    edges = np.clip(np.concatenate([[0], ends]), x1 * height, x2 * height)
    off_on = np.arange(len(runs)).astype(np.uint8) & 1  # 0 1 0 1 ...
    columns = np.repeat(off_on, np.diff(edges)).reshape(x2 - x1, height)
    return columns[:, y1:y2].T, [x1, y1, x2, y2]
