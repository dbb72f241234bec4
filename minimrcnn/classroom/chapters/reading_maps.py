"""What the exercises of chapter 5 share: maps and RoIs to try, and one way to read a map at any points."""

from __future__ import annotations

import numpy as np
import torch

from minimrcnn.classroom import inputs


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


def map_and_rois(g, scale, count=7):
    """Signed maps (2, 3, 9, 14), and RoIs (count, 5) in pixels, of which a cell has 1 / scale."""
    features = inputs.signed(g, 2, 3, 9, 14)
    rois = inputs.rois(g, count, 2, 9 / scale, 14 / scale, smallest=1.5 / scale)
    return features, rois


def edge_rois(scale):
    """Over each border, far outside, and smaller than a cell; of picture 1 and 0."""
    cells = [
        [1, -2.3, 1.4, 3.9, 6.2], [0, 9.3, 4.2, 17.8, 12.1], [1, 5.3, -3.4, 8.1, 2.2],
        [0, 20.3, 3.2, 26.7, 7.9], [1, 3.2, 2.3, 3.6, 2.9], [0, 6.3, 5.7, 6.4, 8.8],
    ]  # fmt: skip
    rois = torch.tensor(cells)
    rois[:, 1:] /= scale
    return rois


def roi_groups(features, rois, output_size, spatial_scale, *rest):
    """The RoIs that a wrong answer may be wrong for alone, (R,) bool by what they have in common."""
    cells = rois[:, 1:] * spatial_scale
    height, width = features.shape[-2:]
    outside = (cells < 0).any(dim=1) | (cells[:, 2] > width - 1) | (cells[:, 3] > height - 1)
    return {
        "RoIs of a later picture": rois[:, 0] > 0,
        "RoIs shorter than a cell": (cells[:, 2:] - cells[:, :2] < 1).any(dim=1),
        "RoIs that reach over the border of the map": outside,
    }


def sampled(
    features, rois, bins, points, span, *, swapped=False, picture=True, place=0.5, reduce="mean", **how
):
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
        crop[:] = values.mean(axis=(2, 4)) if reduce == "mean" else values.max(axis=(2, 4))
    return torch.from_numpy(crops)
