"""What the exercises of chapter 5 share: maps and RoIs to try, and one way to read a map at any points."""

from __future__ import annotations

import math

import numpy as np
import torch

from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import planted

BOTH_TURNED = "y and x are exchanged where the map is read: rows are y, columns are x"
TURNED = "rows and columns of the crop are exchanged: bin [i, j] lies at the i-th place in y, the j-th in x"


def half_up(value):
    """The nearest whole number, 2.5 to 3: C's round for what is not negative; Python's gives 2."""
    return math.floor(value + 0.5)


def axis_weights(positions, size, reading="bilinear", outside="zero", shift=0.0, ends=(True, True)):
    """How much each of `size` cells counts at each position: (S, size) float64.

    ends: whether the positions -1 and `size` themselves still count as the border.
    """
    positions = np.asarray(positions, dtype=float) + shift
    inside = (positions >= -1) & (positions <= size)
    inside &= (positions != -1) | ends[0]
    inside &= (positions != size) | ends[1]
    if outside == "zero at once":
        inside &= (positions >= 0) & (positions <= size - 1)
    p = positions if outside == "fades" else positions.clip(0, size - 1)
    if reading == "nearest":
        p = np.round(p)
    elif reading == "low":
        p = np.floor(p)
    elif reading == "crossed":  # the low neighbour gets the high one's weight
        p = (np.floor(p) + 1 - (p - np.floor(p))).clip(0, size - 1)
    weights = (1 - abs(p[:, None] - np.arange(size))).clip(0)
    return weights if outside == "border" else weights * inside[:, None]


def bilinear_loop(feature, y, x):
    """The map (C, H, W) at a point in cells, (C,); 0 farther than one cell outside."""
    channels, height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return [0.0] * channels
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    below, right = min(i + 1, height - 1), min(j + 1, width - 1)
    fy, fx = y - i, x - j
    top = feature[:, i, j] * (1 - fx) + feature[:, i, right] * fx
    bottom = feature[:, below, j] * (1 - fx) + feature[:, below, right] * fx
    return top * (1 - fy) + bottom * fy


def border_mistakes(like):
    """Wrong ways to read points beside the map; `like` hands its switches to axis_weights."""
    included = "is moved to the border, as up to one cell outside: only beyond is 0"
    return (
        planted("a point more than one cell outside the map counts as 0", like, outside="border"),
        planted(
            "a point less than one cell outside the map is moved to the border; yours fades to 0",
            like,
            outside="fades",
        ),
        planted(
            "a point less than one cell outside the map is moved to the border; yours gives 0 at once",
            like,
            outside="zero at once",
        ),
        planted(f"a point at exactly -1 and at exactly H (or W) {included}", like, ends=(False, False)),
        planted(f"a point at exactly -1 {included}", like, ends=(False, True)),
        planted(f"a point at exactly H (or W) {included}", like, ends=(True, False)),
    )


def map_and_rois(g, scale, count=7):
    """Signed maps (2, 3, 9, 14), and RoIs (count, 5) in pixels, of which a cell has 1 / scale."""
    features = inputs.signed(g, 2, 3, 9, 14)
    rois = inputs.rois(g, count, 2, 9 / scale, 14 / scale, smallest=1.5 / scale)
    return features, rois


def edge_rois(scale):
    """Over each border, far outside, and smaller than a cell; of picture 1 and 0."""
    cells = [
        [1, -2.3, 1.4, 3.9, 6.2], [0, 9.3, 4.2, 17.8, 12.1], [1, 5.3, -3.4, 8.1, 2.2],
        [0, 20.3, 3.2, 26.7, 7.9], [1, 3.2, 2.3, 3.6, 2.9], [0, 6.3, 4.7, 6.4, 7.8],
    ]  # fmt: skip
    rois = torch.tensor(cells)
    rois[:, 1:] /= scale
    return rois


def rim_rois(scale, first, length):
    """Cut into four pieces, each of which is a cell long: some have a point exactly one cell outside.

    first: the beginning that puts the first point at cell -1. length: from x1 to x2, in cells.
    """
    at = first + torch.tensor(
        [[0.0, 2], [4, 0], [12, 2], [4, 7], [4, 2]]  # x = -1, y = -1, x = W = 14, y = H = 9, inside
    )
    number = torch.tensor([[1.0], [0], [0], [1], [1]])
    return torch.cat([number, at / scale, (at + length) / scale], dim=1)


def tie_rois(scale):
    """Their corners lie just between two cells."""
    cells = [
        [0, 0.5, 0.5, 2.5, 2.5],
        [1, 4.5, 1.5, 9.5, 6.5],
        [1, 2.5, 2.5, 6.5, 4.5],
        [0, 6.5, 0.5, 8.5, 5.5],
    ]
    rois = torch.tensor(cells)
    rois[:, 1:] /= scale
    return rois


def roi_groups(features, rois, output_size, spatial_scale, *rest):
    """The RoIs that a wrong answer may be wrong for alone, (R,) bool by what they have in common."""
    cells = rois[:, 1:] * spatial_scale
    height, width = features.shape[-2:]
    outside = (cells < 0).any(dim=1) | (cells[:, 2] > width - 1) | (cells[:, 3] > height - 1)
    return {
        "RoIs that reach over the border of the map": outside,
        "RoIs shorter than a cell": (cells[:, 2:] - cells[:, :2] < 1).any(dim=1),
        "RoIs of a later picture": rois[:, 0] > 0,
    }


def sampled(
    features, rois, bins, points, span, *,
    swapped=False, turned=False, picture=True, place=0.5, reduce="mean", **how,
):  # fmt: skip
    """RoIs cut into bins x bins, each sampled at points x points; `span` gives an axis' start and length.

    In NumPy, whose small products cost a tenth of PyTorch's: an audit makes thousands.
    """
    maps, (height, width) = features.double().numpy(), features.shape[2:]
    share = (
        np.arange(bins)[:, None] + (np.arange(points) + place) / points
    ).ravel() / bins  # of a RoI's side
    crops = np.zeros((len(rois), features.shape[1], bins, bins))
    for crop, (number, x1, y1, x2, y2) in zip(crops, rois.double().tolist(), strict=True):
        (top, h), (left, w) = span(y1, y2), span(x1, x2)
        ys, xs = top + share * h, left + share * w
        ys, xs = (xs, ys) if swapped else (ys, xs)
        rows, columns = axis_weights(ys, height, **how), axis_weights(xs, width, **how)
        values = rows @ maps[int(number) if picture else 0] @ columns.T
        values = values.reshape(-1, bins, points, bins, points)
        values = {"mean": np.mean, "max": np.max, "sum": np.sum}[reduce](values, axis=(2, 4))
        crop[:] = values.swapaxes(1, 2) if turned else values
    return torch.from_numpy(crops)
