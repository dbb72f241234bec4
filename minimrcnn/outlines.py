"""COCO's run lengths of predicted grids from their outlines alone, without the pixels inside.

Down one column of pixels, a bilinear picture of a grid is a straight line from each grid row to the
next. It crosses the threshold at most once on the way, and a division tells where: there a run begins
or ends. A hundred masks of a large photo have four million pixels but thirty thousand such places, and
these are found for all masks at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EPS = np.finfo(np.float32).eps


class Axis(NamedTuple):
    """The pixels that N masks cover along x or y, mask after mask, P in all, and where each looks.

    `place` counts the columns (rows) of the grid with its ring. It is computed as torch does it, in
    float32: a product, minus 0.5. Whether the product is rounded before 0.5 is taken off depends on the
    processor; `doubt` is the difference that this makes, mostly 0.
    """

    mask: np.ndarray  # (P,) int64: whose pixel
    place: np.ndarray  # (P,) float64, 0..size + 1
    doubt: np.ndarray  # (P,) float64
    shift: np.ndarray  # (N,) int64: entry p is the picture's column (row) p + shift[mask]


def lay_out(
    first: np.ndarray, end: np.ndarray, corner: np.ndarray, extent: np.ndarray, size: int, how: str
) -> Axis:
    """The Axis of N masks that come from grids of size x size.

    Args:
        first, end, corner, extent: (N,) one column of `pasting.footprint`'s.
        how: "integer" or "exact" as in `pasting.place_grid`.
    """
    count = end - first
    mask = np.repeat(np.arange(len(first)), count)
    shift = first - np.cumsum(count) + count
    pixel = np.arange(len(mask)) + shift[mask]
    length = extent.astype(np.float32)
    if how == "integer":  # F.interpolate, from the ringed grid to `extent` pixels
        cells = (np.float32(size + 2) / length)[mask]
        distance, ring = (pixel - corner[mask] + 0.5).astype(np.float32), 0
    else:  # F.grid_sample: it knows no ring, and its coordinates begin at -1, which costs them some bits
        cells = np.float32(size / 2)
        inside = (pixel + 0.5).astype(np.float32) - corner.astype(np.float32)[mask]
        distance, ring = inside / length[mask] * 2 - 1 + 1, 1
    rounded_twice = (cells * distance - np.float32(0.5)).astype(np.float64)
    exact = distance.astype(np.float64) * cells - 0.5
    rounded_once = exact.astype(np.float32).astype(np.float64)
    place = (rounded_once + ring).clip(0, size + 1)
    return Axis(mask, place, np.abs(rounded_once - rounded_twice), shift)


def column_profiles(heights: np.ndarray, x: Axis) -> np.ndarray:
    """Heights (N, S, S), columns before rows, at each pixel column of x: (P, S)."""
    size = heights.shape[-1]
    cell = np.minimum(x.place.astype(np.int64), size - 2)
    grid_columns = heights.reshape(-1, size)
    left = grid_columns.take(x.mask * size + cell, axis=0)
    step = grid_columns.take(x.mask * size + cell + 1, axis=0)
    step -= left
    step *= (x.place - cell).astype(np.float32)[:, None]
    left += step
    return left


def find_edges(
    heights: np.ndarray, x: Axis, y: Axis, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where runs begin and end, and the masks of which that is not certain.

    Args:
        heights: (N, S, S) float32: the grids with their rings minus the threshold, columns before rows.

    Returns:
        (E,) int64 edges: pixels counted down the columns of the picture, n * (height * width + 1) more for
        mask n. And the masks that have a pixel so close to the threshold that the rounding of float32
        decides on which side it is.
    """
    size = heights.shape[-1]
    profiles = column_profiles(heights, x)
    # On the way from places to a probability torch and this file round some 13 times, by EPS / 2 at most. A
    # place that is wrong by `doubt` cells changes a probability by no more than `doubt`.
    margin = 8 * EPS + x.doubt  # (P,)
    near = ~(np.abs(profiles) > margin.astype(np.float32)[:, None])  # "not above": so is NaN
    uncertain = np.flatnonzero(near) // size
    above = profiles > 0
    above[uncertain] = False

    column, row = np.divmod(np.flatnonzero(above[:, 1:] != above[:, :-1]), size - 1)  # (E,)
    mask = x.mask[column]
    upper, lower = profiles[column, row].astype(np.float64), profiles[column, row + 1].astype(np.float64)
    # The places of all masks make one ascending line, with S for each mask: one search finds the first
    # pixel past each crossing, or the end of its mask.
    crossing = mask * size + row + upper / (upper - lower)
    line = np.concatenate([[-np.inf], y.mask * size + y.place, [np.inf]])
    past = np.searchsorted(line, crossing)
    doubt = np.concatenate([[0], y.doubt, [0]])
    close = np.zeros(len(past), dtype=bool)
    for beside in (past - 1, past):
        value = np.abs(line[beside] - crossing) * np.abs(upper - lower)
        close |= value <= margin[column] + doubt[beside]

    start = (column + x.shift[mask]) * height + past - 1 + y.shift[mask]
    return mask * (height * width + 1) + start, np.union1d(x.mask[uncertain], mask[close])


def run_lengths(edges: np.ndarray, masks: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of all masks, of `pixels` pixels each, to run lengths (K,) and whose they are (K,)."""
    # Where two edges meet there is none: a run without pixels, or one that goes on in the next column.
    edges, times = np.unique(edges, return_counts=True)
    begin = np.arange(masks) * (pixels + 1)
    marks = np.sort(np.concatenate([edges[times % 2 == 1], begin, begin + pixels]))
    mask, position = np.divmod(marks[:-1], pixels + 1)
    # What begins at a mask's end is the way to the next mask, or a last run of 0, which COCO leaves out.
    real = position < pixels
    return np.diff(marks)[real], mask[real]


def compress(counts: np.ndarray, mask: np.ndarray) -> list[str]:
    """Run lengths (K,) of ascending masks (K,) to COCO's strings (pycocotools, rleToString).

    From a mask's fourth count on, the difference to the count two before is written: five bits to a
    character, the lowest first, a sixth bit for "more follow".
    """
    rest = counts.copy()
    fourth = np.flatnonzero(mask[3:] == mask[:-3]) + 3
    rest[fourth] -= counts[fourth - 2]
    characters = np.zeros((len(counts), 8), dtype=np.uint8)  # 7 times 5 bits, and the end of a line
    which, place = np.arange(len(counts)), 0
    while len(which):
        bits, rest = rest & 31, rest >> 5
        more = rest != -(bits >> 4)  # the rest is 0, or -1 for a negative number: the sign bit says it
        characters[which, place] = 48 + bits + 32 * more
        which, rest, place = which[more], rest[more], place + 1
    characters[np.flatnonzero(np.diff(mask, append=-1)), -1] = ord("\n")
    return characters[characters > 0].tobytes().decode("ascii").splitlines()
