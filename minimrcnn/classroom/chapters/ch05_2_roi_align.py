"""Chapter 5, second part: RoIAlign, the level that a RoI reads, and the gradient."""

from __future__ import annotations

import math

import numpy as np
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
    map_and_rois,
    rim_rois,
    roi_groups,
    sampled,
)
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- roi_align


def _align_inputs(g):
    for scale, bins, points, aligned in ((1 / 4, 3, 2, False), (1 / 16, 2, 3, True)):
        features, rois = map_and_rois(g, scale)
        yield features, rois, bins, scale, points, aligned
    yield features, edge_rois(1 / 8), 4, 1 / 8, 1, False
    yield features, edge_rois(1 / 8), 2, 1 / 8, 2, True
    yield features, rim_rois(1 / 8, -1.5, 4.0), 2, 1 / 8, 2, False  # exactly one cell outside
    yield features, rois[:0], 2, 1 / 16, 2, False


def _align_like(
    features, rois, output_size, spatial_scale, sampling_ratio, aligned, *,
    half="aligned", early=False, rounding="none", least="unaligned", points=None, scaled=True, **how,
):  # fmt: skip
    scale = spatial_scale if scaled else 1.0
    shift = 0.5 if {"aligned": aligned, "never": False, "always": True}[half] else 0.0
    keeps_one = {"unaligned": not aligned, "never": False, "always": True}[least]

    def span(low, high):
        if rounding == "before":
            low, high = round(low), round(high)
        if early:
            low, high = (low - shift) * scale, (high - shift) * scale
        else:
            low, high = low * scale - shift, high * scale - shift
        if rounding == "after":
            low, high = round(low), round(high)
        return low, max(high - low, 1) if keeps_one else high - low

    return sampled(features, rois, output_size, points or sampling_ratio, span, **how)


def _align_loop(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    crops = torch.zeros(len(rois), features.shape[1], output_size, output_size)
    for r, (number, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * spatial_scale - (0.5 if aligned else 0.0) for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        for i in range(output_size):
            for j in range(output_size):
                values = [
                    torch.as_tensor(
                        bilinear_loop(
                            features[int(number)],
                            y1 + (i + (p + 0.5) / sampling_ratio) * h / output_size,
                            x1 + (j + (q + 0.5) / sampling_ratio) * w / output_size,
                        )
                    )
                    for p in range(sampling_ratio)
                    for q in range(sampling_ratio)
                ]
                crops[r, :, i, j] = torch.stack(values).mean(dim=0)
    return crops


ROI_ALIGN = Exercise(
    name="roi_align",
    chapter=5,
    difficulty=4,
    minutes=40,
    part="roi_align",
    stub='''
def roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    """RoIAlign (Mask R-CNN, section 3): the mean of bilinear samples in each bin of each RoI, no rounding.

    features: (B, C, H, W) float32. rois: (R, 5) float32, the number of the picture, then xyxy in pixels.
    output_size: P, bins along each side. spatial_scale: cells a pixel. sampling_ratio: S, points along each
    side of a bin, at least 1.
    aligned: True: the corners times spatial_scale are shifted by -0.5, because a cell has its value at its
    middle. False: they are not, and a RoI is at least 1 cell long along each axis.
    Each of the P * P bins is cut into S * S equal pieces and read at their middles, as bilinear_sample
    reads: from -1 to H and from -1 to W (these numbers included) the point is moved to the border, farther
    out the value is 0. The bin is the mean of these S * S values, zeros included.
    Returns (R, C, P, P) float32, with a gradient in features; R may be 0.
    """
'''.strip(),
    reference=roi_ops.roi_align,
    inputs=_align_inputs,
    others=(_align_loop, lambda *arguments: torchvision.ops.roi_align(*arguments)),
    mistakes=(
        planted("x and y are swapped", _align_like, swapped=True),
        planted(BOTH_TURNED, _align_like, swapped=True, turned=True),
        planted(TURNED, _align_like, turned=True),
        planted("the batch index is ignored: every RoI reads picture 0", _align_like, picture=False),
        planted(
            "the half pixel is missing: with aligned=True the corners are shifted by -0.5",
            _align_like,
            half="never",
        ),
        planted("the half pixel is subtracted although aligned is False", _align_like, half="always"),
        planted(
            "0.5 is subtracted before scaling: multiply by spatial_scale, then subtract 0.5",
            _align_like,
            early=True,
        ),
        planted("the RoI is rounded to whole cells: RoIAlign rounds nothing", _align_like, rounding="after"),
        planted("rounded before scaling: RoIAlign rounds nothing", _align_like, rounding="before"),
        planted("sampling_ratio is ignored: one point in the middle of each bin", _align_like, points=1),
        planted(
            "the points lie at the corners of their pieces: they lie in the middle, (p + 0.5) / S",
            _align_like,
            place=0.0,
        ),
        planted("with aligned=False a RoI is at least one cell long", _align_like, least="never"),
        planted("with aligned=True a RoI may be shorter than a cell", _align_like, least="always"),
        planted("a bin is the mean of its points, not the largest", _align_like, reduce="max"),
        planted("a bin is the mean of its points, not their sum", _align_like, reduce="sum"),
        planted("spatial_scale is ignored", _align_like, scaled=False),
        *border_mistakes(_align_like),
    ),
    groups=roi_groups,
    gradient=(0,),
)

# ---------------------------------------------------------------- assign_levels


def _level_inputs(g):
    sides = torch.tensor([9.0, 40, 70, 100, 160, 260, 390, 700, 1500, 3.0])
    tall = inputs.uniform(g, 0.5, 2.0, 10)  # the area counts, not one side
    corner = inputs.uniform(g, 0, 200, 10, 2)
    boxes = torch.cat([corner, corner + torch.stack([sides * tall, sides / tall], dim=1)], dim=1)
    yield boxes, 4, 224.0, ("outside", 1e-6), 0
    yield boxes / 3, 4, 56.0, ("inside", 1e-8), 0
    # An epsilon that shows: log2(side) + .4 is log2(1.32 * side), log2(side + .4) something else.
    yield boxes, 4, 224.0, ("outside", 0.4), 0
    yield boxes, 4, 224.0, ("inside", 0.4), 0
    yield boxes, 3, 448.0, ("outside", 1e-6), 0
    # A box from 0 to 6 is 6 or 7 wide: with plus_one these go to another level.
    small = torch.tensor([[0.0, 0, 6, 6], [1, 1, 14.2, 14.2], [2, 3, 29.4, 30.4]])
    yield small, 4, 28.0, ("inside", 1e-6), 1
    yield torch.tensor([[5.0, 5, 5, 5], [5.0, 5, 400, 300]]), 4, 224.0, ("outside", 1e-6), 0
    yield boxes[:0], 4, 224.0, ("outside", 1e-6), 0


def _levels_like(
    boxes, levels, canonical_scale, epsilon, plus_one=0, *,
    root=True, base=0, rounding="floor", clamped=True, scale=None, plus=True, side="area", at=4, where=None,
    log=torch.log2,
):  # fmt: skip
    w, h = (boxes[:, 2:] - boxes[:, :2] + (plus_one if plus else 0)).double().unbind(1)
    length = {"area": w * h, "longer": torch.maximum(w, h) ** 2}[side]
    length = length.sqrt() if root else length
    length = (length / (scale or canonical_scale)).clamp(min=1e-9)
    where = where or epsilon[0]
    k = at + log(length + epsilon[1] * (where == "inside")) + epsilon[1] * (where == "outside")
    k = {"floor": k.floor(), "round": k.round(), "ceil": k.ceil()}[rounding]
    if clamped:
        k = k.clamp(2, 1 + levels)
    return k.to(torch.int64) - 2 + base


def _levels_loop(boxes, levels, canonical_scale, epsilon, plus_one=0):
    rows, (where, small) = [], epsilon
    for x1, y1, x2, y2 in boxes.tolist():
        side = math.sqrt((x2 - x1 + plus_one) * (y2 - y1 + plus_one)) / canonical_scale
        side = side * 2**small if where == "outside" else side + small
        row = 0
        while row < levels - 1 and side >= 2.0 ** (row - 1):
            row += 1
        rows.append(row)
    return rows


ASSIGN_LEVELS = Exercise(
    name="assign_levels",
    chapter=5,
    difficulty=2,
    minutes=15,
    part="assign_levels",
    stub='''
def assign_levels(boxes, levels, canonical_scale, epsilon, plus_one=0):
    """Which level of the pyramid each RoI reads (FPN, equation 1).

    k = floor(4 + log2(sqrt(area) / canonical_scale)), cut to 2 ... levels + 1; P2 is row 0, P3 row 1, ...
    boxes: (N, 4) float32, xyxy in pixels. levels: how many there are, P2 the first.
    canonical_scale: side in pixels of the square RoI that reads P4.
    epsilon: ("outside", e) adds e to the logarithm, ("inside", e) to its argument; either keeps a RoI of
    just the canonical size on its level. plus_one: 1 where a box is x2 - x1 + 1 wide, otherwise 0.
    Returns (N,) int64, 0 for P2. A box without area reads P2.
    """
'''.strip(),
    reference=roi_ops.assign_levels,
    inputs=_level_inputs,
    others=(_levels_like, _levels_loop),
    mistakes=(
        planted("the square root of the area is missing", _levels_like, root=False),
        planted("the natural logarithm, log, in the place of log2", _levels_like, log=torch.log),
        planted("gives k, 2 for P2: give the row, 0 for P2", _levels_like, base=2),
        planted("rounds: equation 1 takes the floor", _levels_like, rounding="round"),
        planted("takes the ceiling: equation 1 takes the floor", _levels_like, rounding="ceil"),
        planted("the levels are not cut to those there are", _levels_like, clamped=False),
        planted("uses 224 whatever canonical_scale is", _levels_like, scale=224.0),
        planted("plus_one is ignored", _levels_like, plus=False),
        planted("the epsilon is left out", _levels_like, where="nowhere"),
        planted('adds the epsilon to the logarithm where it says "inside"', _levels_like, where="outside"),
        planted('adds the epsilon to the argument where it says "outside"', _levels_like, where="inside"),
        planted(
            "the longer side decides for you: the square root of the area does", _levels_like, side="longer"
        ),
    ),
)

# ---------------------------------------------------------------- roi_align_backward


def _backward_inputs(g):
    # One point a bin, inside, and neighbours that share cells: whoever overwrites does it in the same order.
    first = torch.tensor([[1.0, 9, 5, 17, 12], [0, 24, 6, 30, 14], [1, 12, 7, 21, 15], [1, 8, 13, 12, 16]])
    yield inputs.signed(g, 4, 3, 3, 3), first, (2, 3, 7, 10), 1 / 4, 1, False
    for scale, bins, points, aligned in ((1 / 4, 2, 2, False), (1 / 16, 3, 1, True)):
        rois = inputs.rois(g, 5, 2, 7 / scale, 10 / scale, smallest=1.5 / scale)
        yield inputs.signed(g, 5, 3, bins, bins), rois, (2, 3, 7, 10), scale, points, aligned
    yield inputs.signed(g, 6, 2, 2, 2), edge_rois(1 / 8), (2, 2, 9, 14), 1 / 8, 2, False


def _backward_reference(grad, rois, shape, spatial_scale, sampling_ratio, aligned):
    with torch.enable_grad():
        features = torch.zeros(shape, requires_grad=True)
        crops = torchvision.ops.roi_align(
            features, rois, grad.shape[2:], spatial_scale, sampling_ratio, aligned
        )
        return torch.autograd.grad(crops, features, grad)[0]


def _backward_loop(
    grad, rois, shape, spatial_scale, sampling_ratio, aligned, *,
    add="all", averaged=2, four=True, swapped=False, picture=True,
):  # fmt: skip
    out, g, bins = np.zeros(shape), grad.double().numpy(), grad.shape[2]
    how = {} if four else {"reading": "nearest"}
    for r, (number, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * spatial_scale - 0.5 * aligned for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        share = (np.arange(bins * sampling_ratio) + 0.5) / (bins * sampling_ratio)
        ys, xs = y1 + share * h, x1 + share * w
        ys, xs = (xs, ys) if swapped else (ys, xs)
        rows, columns = axis_weights(ys, shape[2], **how), axis_weights(xs, shape[3], **how)
        target = out[int(number) if picture else 0]
        if add == "in a RoI":
            target[:] = 0
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                weight = row[:, None] * column / sampling_ratio**averaged  # (H, W), of 4 cells
                piece = g[r, :, i // sampling_ratio, j // sampling_ratio, None, None] * weight
                target[:] = np.where(weight > 0, piece, target) if add == "nowhere" else target + piece
    return torch.from_numpy(out)


def _backward_matrices(grad, rois, shape, spatial_scale, sampling_ratio, aligned):
    out, bins = torch.zeros(shape, dtype=torch.float64), grad.shape[2]
    for (number, *corners), g in zip(rois.tolist(), grad.double(), strict=True):
        x1, y1, x2, y2 = (c * spatial_scale - 0.5 * aligned for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        share = (np.arange(bins * sampling_ratio) + 0.5) / (bins * sampling_ratio)
        rows, columns = axis_weights(y1 + share * h, shape[2]), axis_weights(x1 + share * w, shape[3])
        ay = torch.from_numpy(rows).view(bins, sampling_ratio, -1).mean(dim=1)  # (P, H)
        ax = torch.from_numpy(columns).view(bins, sampling_ratio, -1).mean(dim=1)  # (P, W)
        out[int(number)] += ay.T @ g @ ax
    return out


ROI_ALIGN_BACKWARD = Exercise(
    name="roi_align_backward",
    chapter=5,
    difficulty=5,
    minutes=45,
    stub='''
def roi_align_backward(grad, rois, shape, spatial_scale, sampling_ratio, aligned):
    """The gradient of RoIAlign in its feature map, without autograd.

    grad: (R, C, P, P) float32, the gradient of the loss in RoIAlign's result. shape: (B, C, H, W) of the map.
    rois, spatial_scale, sampling_ratio, aligned: as roi_align got them.
    What a sampling point read from a cell, with a weight, it gives back to this cell with the same weight.
    Returns (B, C, H, W) float32.
    """
'''.strip(),
    reference=_backward_reference,
    inputs=_backward_inputs,
    others=(_backward_loop, _backward_matrices),
    mistakes=(
        planted(
            "a cell that is read several times keeps only the last gradient: add them up",
            _backward_loop,
            add="nowhere",
        ),
        planted(
            "a picture keeps only the gradient of its last RoI: add those of all its RoIs up",
            _backward_loop,
            add="in a RoI",
        ),
        planted(
            "each point gives the whole gradient of its bin: divide by the number of points",
            _backward_loop,
            averaged=0,
        ),
        planted(
            "a bin has S * S points, so each gets its gradient divided by S * S: yours by S",
            _backward_loop,
            averaged=1,
        ),
        planted(
            "a point gives all to the nearest cell: to the four that it read, with their weights",
            _backward_loop,
            four=False,
        ),
        planted("x and y are swapped", _backward_loop, swapped=True),
        planted(
            "the batch index is ignored: every gradient goes to picture 0", _backward_loop, picture=False
        ),
    ),
)

EXERCISES = (ROI_ALIGN, ASSIGN_LEVELS, ROI_ALIGN_BACKWARD)
