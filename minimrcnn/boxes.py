"""Boxes: area, IoU, the regression code of R-CNN, clipping, and non-maximum suppression.

A box is (x1, y1, x2, y2) in pixels. `plus_one` is the oldest quarrel of the field: Detectron counts
pixels, so that a box from 3 to 5 is 3 wide (`plus_one=1`); torchvision and detectron2 measure
lengths, so that it is 2 wide (`plus_one=0`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from minimrcnn.structures import constant

# A delta of log(1000/16) makes a 16 px anchor 1000 px wide: larger ones would only overflow exp().
# The value is Detectron's (BBOX_XFORM_CLIP).
MAX_LOG_SCALE = math.log(1000.0 / 16)


def area(boxes: Tensor, plus_one: int = 0) -> Tensor:
    """Area of boxes (..., 4) in square pixels: (...)."""
    width = boxes[..., 2] - boxes[..., 0] + plus_one
    height = boxes[..., 3] - boxes[..., 1] + plus_one
    return width * height


def iou(a: Tensor, b: Tensor, plus_one: int = 0) -> Tensor:
    """Intersection over union of every pair: (..., N, 4) and (..., M, 4) to (..., N, M).

    A pair whose union is empty has IoU 0, not NaN.
    """
    left_top = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])  # (..., N, M, 2)
    right_bottom = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    width, height = (right_bottom - left_top + plus_one).clamp(min=0).unbind(-1)
    intersection = width * height  # (..., N, M)
    union = area(a, plus_one)[..., :, None] + area(b, plus_one)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...], plus_one: int = 0) -> Tensor:
    """The deltas that move `anchors` onto `boxes`: two (..., 4) to one (..., 4).

    R-CNN (Girshick 2014, appendix C): the shift of the centre in units of the anchor's size, and the
    log of the ratio of sizes, each times its weight (10, 10, 5, 5 in the box head, so that the four
    targets have about unit variance).
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2] + plus_one  # (..., 2) width, height
    box_size = boxes[..., 2:] - boxes[..., :2] + plus_one
    anchor_centre = anchors[..., :2] + 0.5 * anchor_size
    box_centre = boxes[..., :2] + 0.5 * box_size
    shift = (box_centre - anchor_centre) / anchor_size
    scale = torch.log(box_size / anchor_size)
    return torch.cat([shift, scale], dim=-1) * constant(tuple(weights), shift.device, shift.dtype)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...], plus_one: int = 0) -> Tensor:
    """The inverse of `encode`: deltas (..., 4) applied to anchors (..., 4) give boxes (..., 4)."""
    deltas = deltas / constant(tuple(weights), deltas.device, deltas.dtype)
    anchor_size = anchors[..., 2:] - anchors[..., :2] + plus_one
    anchor_centre = anchors[..., :2] + 0.5 * anchor_size
    centre = anchor_centre + deltas[..., :2] * anchor_size
    size = anchor_size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size - plus_one], dim=-1)


def to_lengths(boxes: Tensor, plus_one: int) -> Tensor:
    """Boxes whose plain x2 - x1 is their width under `plus_one`: what an NMS without it must be given."""
    return boxes + constant((0, 0, plus_one, plus_one), boxes.device, boxes.dtype)


def clip(boxes: Tensor, sizes: Tensor, plus_one: int = 0) -> Tensor:
    """Cut boxes (B, K, 4) to their pictures, `sizes` (B, 2) as (height, width)."""
    limit = (sizes - plus_one).to(boxes.dtype).flip(-1).repeat(1, 2)[:, None]  # (B, 1, 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def large_enough(boxes: Tensor, min_size: float, plus_one: int = 0) -> Tensor:
    """Which boxes (..., 4) are `min_size` px wide and high, and not empty: (...) bool."""
    size = boxes[..., 2:] - boxes[..., :2] + plus_one
    return ((size >= min_size) & (size > 0)).all(dim=-1)


def nms_greedy(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression as it is defined: take the best, drop what overlaps it, repeat.

    Args:
        boxes: (N, 4); scores: (N,); threshold: boxes with a larger IoU than this are dropped.

    Returns:
        (M,) int64, the rows kept, by falling score; the same as torchvision.ops.nms.
    """
    order = scores.argsort(descending=True, stable=True)
    overlap = iou(boxes, boxes)
    kept: list[int] = []
    for candidate in order.tolist():
        if all(overlap[candidate, better] <= threshold for better in kept):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def nms_rounds(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, rounds: int = 32) -> Tensor:
    """The same answer for a whole batch, without asking the host: (B, N) bool.

    Sort by score. A box survives if no surviving better box overlaps it. Start from "all survive" and
    apply that sentence to all boxes at once until nothing changes: box i is right after as many
    rounds as the longest chain of suppressions above it, in practice fewer than 10. What has not
    settled after `rounds` is kept rather than lost.

    Args:
        boxes: (B, N, 4), already moved apart by group; scores: (B, N); valid: (B, N) bool.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    alive = valid.gather(1, order)  # (B, N)
    suppresses = (iou(boxes, boxes) > threshold).triu(diagonal=1)  # (B, N, N): row i drops column j > i
    keep = alive
    for _ in range(rounds):
        keep = alive & ~(suppresses & keep[:, :, None]).any(dim=1)
    return torch.zeros_like(valid).scatter(1, order, keep)


def nms_by_group(nms: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """Lift an NMS of one picture and one group, `nms(boxes, scores, threshold) -> rows`, to a batch."""

    def grouped(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
        picture, row = valid.nonzero(as_tuple=True)  # (V,) each
        apart = int(groups.max()) + 1 if groups.numel() else 1  # so that each pair of the two has its number
        number, order = (picture * apart + groups[picture, row]).sort(stable=True)
        picture, row = picture[order], row[order]  # those of one picture and group together
        # A choice of rows has no gradient.
        boxes, scores = boxes[picture, row].detach(), scores[picture, row].detach()
        sizes = number.unique_consecutive(return_counts=True)[1].tolist()
        keep = torch.zeros_like(row, dtype=torch.bool)  # (V,)
        for part, box, score in zip(keep.split(sizes), boxes.split(sizes), scores.split(sizes), strict=True):
            part[nms(box, score, threshold)] = True  # part is a view: this writes into keep
        return torch.zeros_like(valid).index_put((picture, row), keep)

    return grouped


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """NMS within each group (FPN level or class) of each picture.

    Args:
        boxes: (B, N, 4); scores: (B, N); groups: (B, N) int64; valid: (B, N) bool;
        threshold: boxes that overlap a better one of their group by more are dropped.

    Returns:
        (B, N) bool, the boxes that stay.
    """
    if boxes.device.type == "cpu":
        return nms_by_group(torchvision.ops.nms)(boxes, scores, groups, valid, threshold)
    # Groups are moved so far apart that boxes of different ones cannot overlap.
    far = boxes.amax(dim=(1, 2), keepdim=True).clamp(min=0) + 1  # (B, 1, 1)
    return nms_rounds(boxes + groups[..., None] * far, scores, valid, threshold)
