"""Chapter 5, first part: reading a map between its cells, RoIPool and RoIWarp."""

from __future__ import annotations

import math

import torch
import torchvision

from minimrcnn import roi_ops
from minimrcnn.classroom import inputs
from minimrcnn.classroom.chapters.reading_maps import (
    BOTH_TURNED,
    TURNED,
    axis_weights,
    bilinear_loop,
    border_mistakes,
    edge_rois,
    half_up,
    map_and_rois,
    rim_rois,
    roi_groups,
    sampled,
    tie_rois,
)
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- bilinear_sample


def _bilinear_inputs(g):
    feature = inputs.signed(g, 3, 5, 8)
    for y, x in ((1.3, 5.6), (3.75, 0.25), (0.5, 6.5), (2.0, 3.0), (4.0, 7.0), (1.2, 7.0)):
        yield feature, y, x
    for y, x in ((4.6, 7.4), (-0.7, 2.3), (2.2, -0.4), (-0.3, 7.9)):  # less than a cell outside
        yield feature, y, x
    for y, x in ((-1.2, 3.1), (2.3, 8.4), (5.3, 1.1), (2.1, -1.6)):  # farther out
        yield feature, y, x
    for y, x in ((-1.0, 3.1), (2.3, -1.0), (5.0, 1.1), (2.1, 8.0)):  # exactly one cell outside
        yield feature, y, x


def _bilinear_like(feature, y, x, swapped=False, **how):
    y, x = (x, y) if swapped else (y, x)
    rows, columns = axis_weights([y], feature.shape[1], **how), axis_weights([x], feature.shape[2], **how)
    return (rows @ feature.double().numpy() @ columns.T)[:, 0, 0]


BILINEAR_SAMPLE = Exercise(
    name="bilinear_sample",
    chapter=5,
    difficulty=2,
    minutes=20,
    stub='''
def bilinear_sample(feature, y, x):
    """The value of a map at a point between its cells.

    feature: (C, H, W) float32; the cell in row i and column j has its value at y = i, x = j.
    y, x: two numbers, in cells. The four cells around the point count the more the nearer they are.
    Up to one cell outside the map, from -1 to H and from -1 to W (these numbers included), the point is
    moved to the border; farther out the value is 0.
    Returns (C,) float32.
    """
'''.strip(),
    reference=_bilinear_like,
    inputs=_bilinear_inputs,
    others=(bilinear_loop,),
    mistakes=(
        planted("x and y are swapped: rows are y, columns are x", _bilinear_like, swapped=True),
        planted("gives the nearest cell: all four around the point count", _bilinear_like, reading="nearest"),
        planted(
            "gives the cell above and left: all four around the point count", _bilinear_like, reading="low"
        ),
        planted("the weights are crossed: the nearer cell counts more", _bilinear_like, reading="crossed"),
        planted("more than one cell outside the map the value is 0", _bilinear_like, outside="border"),
        planted(
            "less than one cell outside the map the point is moved to the border; yours fades to 0",
            _bilinear_like,
            outside="fades",
        ),
        planted(
            "less than one cell outside the map the point is moved to the border; yours gives 0 at once",
            _bilinear_like,
            outside="zero at once",
        ),
        planted("half a cell is subtracted: row i has its value at y = i", _bilinear_like, shift=-0.5),
        planted("half a cell is added: row i has its value at y = i", _bilinear_like, shift=0.5),
        planted(
            "at exactly -1 and exactly H (or W) the point is still moved to the border: only beyond is 0",
            _bilinear_like,
            ends=(False, False),
        ),
        planted(
            "at exactly -1 the point is still moved to the border: only beyond is 0",
            _bilinear_like,
            ends=(False, True),
        ),
        planted(
            "at exactly H (or W) the point is still moved to the border: only beyond is 0",
            _bilinear_like,
            ends=(True, False),
        ),
    ),
    tolerance=1e-5,
)

# ---------------------------------------------------------------- roi_pool


def _pool_inputs(g):
    for scale, bins in ((1 / 4, 3), (1 / 16, 2)):
        features, rois = map_and_rois(g, scale)
        yield features, rois, bins, scale
    yield features, tie_rois(1 / 8), 3, 1 / 8
    yield features, edge_rois(1 / 8), 4, 1 / 8
    yield features, rois[:0], 2, 1 / 16


def _pool_like(
    features, rois, output_size, spatial_scale, *,
    rounding=half_up, before=False, last=True, ends=(math.floor, math.ceil), reduce="max", swapped=False,
    turned=False, picture=True, scaled=True, empty=0.0,
):  # fmt: skip
    crops = features.new_zeros(len(rois), features.shape[1], output_size, output_size)
    scale = spatial_scale if scaled else 1.0
    for r, (number, x1, y1, x2, y2) in enumerate(rois.tolist()):
        feature = features[int(number) if picture else 0]
        edges = []
        for low, high in ((y1, y2), (x1, x2)):
            if before:
                low, high = int(round(low) * scale), int(round(high) * scale)
            else:
                low, high = rounding(low * scale), rounding(high * scale)
            length = max(high - low + last, 1)
            start, stop = ends
            edges.append(
                [
                    (low + start(i * length / output_size), low + stop((i + 1) * length / output_size))
                    for i in range(output_size)
                ]
            )
        if swapped:
            edges.reverse()
        for i, (top, bottom) in enumerate(edges[0]):
            for j, (left, right) in enumerate(edges[1]):
                bin_ = feature[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)].flatten(1)
                if bin_.shape[1]:
                    crops[r, :, i, j] = bin_.mean(dim=1) if reduce == "mean" else bin_.amax(dim=1)
                else:
                    crops[r, :, i, j] = empty
    crops = crops.clamp(min=0) if reduce == "max from 0" else crops
    return crops.transpose(2, 3) if turned else crops


def _pool_masked(features, rois, output_size, spatial_scale):
    """Each bin as a mask of rows and one of columns."""
    crops = []
    for number, x1, y1, x2, y2 in rois.tolist():
        masks = []
        for low, high, size in ((y1, y2, features.shape[2]), (x1, x2, features.shape[3])):
            start = half_up(low * spatial_scale)
            length = max(half_up(high * spatial_scale) - start + 1, 1)
            i, cell = torch.arange(output_size)[:, None], torch.arange(size)
            first = start + torch.div(i * length, output_size, rounding_mode="floor")
            stop = start - torch.div(-(i + 1) * length, output_size, rounding_mode="floor")
            masks.append((cell >= first) & (cell < stop))  # (P, size)
        inside = masks[0][:, None, :, None] & masks[1][None, :, None, :]  # (P, P, H, W)
        best = features[int(number)][:, None, None].masked_fill(~inside, -torch.inf).amax(dim=(3, 4))
        crops.append(torch.where(torch.isinf(best), 0.0, best))
    return torch.stack(crops) if crops else features.new_zeros(0, features.shape[1], output_size, output_size)


EVEN = "halves are rounded to even, as Python's and torch's round do: round them up, floor(v + 0.5)"
TO_ZERO = "int(v + 0.5) rounds numbers below 0 wrongly, it cuts towards 0: floor(v + 0.5)"
BOUND_OF_BINS = "the borders of the bins are rounded: a bin begins at the floor and ends at the ceil"


def _to_zero(value):
    return int(value + 0.5)


ROI_POOL = Exercise(
    name="roi_pool",
    chapter=5,
    difficulty=3,
    minutes=30,
    stub='''
def roi_pool(features, rois, output_size, spatial_scale):
    """RoIPool (Fast R-CNN): the largest value in each bin of each RoI, with two roundings.

    features: (B, C, H, W) float32. rois: (R, 5) float32, the number of the picture, then xyxy in pixels.
    output_size: P, bins along each side. spatial_scale: cells a pixel, such as 1 / 16.
    The first rounding: the corners times spatial_scale are rounded to the nearest whole cells, halves up
    (2.5 to 3, where Python's round gives 2); the RoI covers the cells from x1 to x2, both included, so that
    it is max(x2 - x1 + 1, 1) long (y the same).
    The second: bin i takes the cells from floor(i * length / P) up to, not including,
    ceil((i + 1) * length / P), counted from x1. Cells outside the map are left out; a bin without
    any is 0.
    Returns (R, C, P, P) float32; R may be 0.
    """
'''.strip(),
    reference=roi_ops.roi_pool,
    inputs=_pool_inputs,
    others=(_pool_like, _pool_masked, lambda *arguments: torchvision.ops.roi_pool(*arguments)),
    mistakes=(
        planted("x and y are swapped", _pool_like, swapped=True),
        planted(TURNED, _pool_like, turned=True),
        planted("the batch index is ignored: every RoI reads picture 0", _pool_like, picture=False),
        planted(EVEN, _pool_like, rounding=round),
        planted(TO_ZERO, _pool_like, rounding=_to_zero),
        planted(
            "the largest value starts at 0 for you: a bin of negative values has a negative maximum",
            _pool_like,
            reduce="max from 0",
        ),
        planted("rounded before scaling: multiply by spatial_scale, then round", _pool_like, before=True),
        planted(
            "the corners are cut to whole cells (floor): round to the nearest",
            _pool_like,
            rounding=math.floor,
        ),
        planted("the corners are cut to whole cells (int): round to the nearest", _pool_like, rounding=int),
        planted("the corners are rounded up (ceil): round to the nearest", _pool_like, rounding=math.ceil),
        planted("the last cell is missing: a RoI covers x1 to x2 inclusive", _pool_like, last=False),
        planted(
            "the bins must end at ceil((i + 1) * length / P): neighbours may share a cell",
            _pool_like,
            ends=(math.floor, math.floor),
        ),
        planted(
            "floor and ceil are swapped: a bin begins at the floor and ends at the ceil",
            _pool_like,
            ends=(math.ceil, math.floor),
        ),
        planted(
            "the bins must begin at floor(i * length / P): yours begin at the ceil",
            _pool_like,
            ends=(math.ceil, math.ceil),
        ),
        planted(BOUND_OF_BINS, _pool_like, ends=(round, round)),
        planted(BOUND_OF_BINS, _pool_like, ends=(half_up, half_up)),
        planted("gives the mean of a bin: RoIPool takes the largest value", _pool_like, reduce="mean"),
        planted("spatial_scale is ignored", _pool_like, scaled=False),
        planted("a bin without cells must be 0", _pool_like, empty=-torch.inf),
    ),
    groups=roi_groups,
)

# ---------------------------------------------------------------- roi_warp


def _warp_inputs(g):
    for scale, bins, points in ((1 / 4, 3, 2), (1 / 16, 2, 3)):
        features, rois = map_and_rois(g, scale)
        yield features, rois, bins, scale, points
    yield features, tie_rois(1 / 8), 3, 1 / 8, 2
    yield features, edge_rois(1 / 8), 4, 1 / 8, 1
    yield features, rim_rois(1 / 8, -1.0, 3.0), 2, 1 / 8, 2  # exactly one cell outside
    yield features, rois[:0], 2, 1 / 16, 2


def _warp_like(
    features, rois, output_size, spatial_scale, sampling_ratio, *,
    rounding=half_up, before=False, half=0.5, last=1, points=None, **how,
):  # fmt: skip
    def span(low, high):
        if before:
            low, high = half_up(low) * spatial_scale, half_up(high) * spatial_scale
        else:
            low, high = rounding(low * spatial_scale), rounding(high * spatial_scale)
        return low - half, max(high - low + last, 1)

    return sampled(features, rois, output_size, points or sampling_ratio, span, **how)


def _warp_loop(features, rois, output_size, spatial_scale, sampling_ratio):
    crops = torch.zeros(len(rois), features.shape[1], output_size, output_size)
    total = output_size * sampling_ratio
    for r, (number, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (half_up(c * spatial_scale) for c in corners)
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        for i in range(total):
            for j in range(total):
                y, x = y1 - 0.5 + (i + 0.5) * h / total, x1 - 0.5 + (j + 0.5) * w / total
                value = torch.as_tensor(bilinear_loop(features[int(number)], y, x)) / sampling_ratio**2
                crops[r, :, i // sampling_ratio, j // sampling_ratio] += value
    return crops


ROI_WARP = Exercise(
    name="roi_warp",
    chapter=5,
    difficulty=3,
    minutes=20,
    stub='''
def roi_warp(features, rois, output_size, spatial_scale, sampling_ratio):
    """RoIWarp, as the Mask R-CNN paper describes it: bilinear sampling on RoIPool's rounded RoI.

    features: (B, C, H, W) float32. rois: (R, 5) float32, the number of the picture, then xyxy in pixels.
    output_size: P, bins along each side. spatial_scale: cells a pixel. sampling_ratio: S, points along each
    side of a bin.
    The corners times spatial_scale are rounded to the nearest whole cells, halves up (2.5 to 3); the RoI
    covers the cells x1 to x2, both included: it begins half a cell before x1 and is max(x2 - x1 + 1, 1) long
    (y the same). This length is cut into P equal bins, not rounded, and each bin into S equal pieces, read
    at their middles (x = j is the middle of column j). A bin is the mean of its S * S values, each read as
    bilinear_sample reads it: from -1 to H and from -1 to W (these numbers included) the point is moved to
    the border, farther out the value is 0 and still counts in the mean.
    Returns (R, C, P, P) float32; R may be 0.
    """
'''.strip(),
    reference=roi_ops.roi_warp,
    inputs=_warp_inputs,
    others=(_warp_like, _warp_loop),
    mistakes=(
        planted("x and y are swapped", _warp_like, swapped=True),
        planted(BOTH_TURNED, _warp_like, swapped=True, turned=True),
        planted(TURNED, _warp_like, turned=True),
        planted("the batch index is ignored: every RoI reads picture 0", _warp_like, picture=False),
        planted("the RoI is not rounded: that is RoIAlign", _warp_like, rounding=float),
        planted("rounded before scaling: multiply by spatial_scale, then round", _warp_like, before=True),
        planted(
            "the corners are cut to whole cells (floor): round to the nearest",
            _warp_like,
            rounding=math.floor,
        ),
        planted(EVEN, _warp_like, rounding=round),
        planted(TO_ZERO, _warp_like, rounding=_to_zero),
        planted(
            "the half cell is missing: a RoI begins half a cell before the middle of its first cell",
            _warp_like,
            half=0.0,
        ),
        planted("the last cell is missing: a RoI covers x1 to x2 inclusive", _warp_like, last=0),
        planted("sampling_ratio is ignored: one point in the middle of each bin", _warp_like, points=1),
        planted("a bin is the mean of its points, not the largest", _warp_like, reduce="max"),
        planted("a bin is the mean of its points, not their sum", _warp_like, reduce="sum"),
        *border_mistakes(_warp_like),
    ),
    groups=roi_groups,
)

EXERCISES = (BILINEAR_SAMPLE, ROI_POOL, ROI_WARP)
