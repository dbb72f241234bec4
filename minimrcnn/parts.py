"""The parts that can be replaced: the functions that a student writes, and the contract of each.

A student writes for one picture, without padding; the model works on batches with it. `Parts` holds
the model's side, `per_image(name, function)` lifts the student's function to it with a loop.

    part           the student's arguments (one picture)                            result
    iou            a (N, 4), b (M, 4), plus_one                                     (N, M)
    encode         boxes (N, 4), anchors (N, 4), weights (4 numbers), plus_one      (N, 4) deltas
    decode         deltas (N, 4), anchors (N, 4), weights (4 numbers), plus_one     (N, 4) boxes
    match          overlap (G, N), high, low, keep_best                             (N,) int64, row of the
                                                   ground truth; -1 background, -2 takes no part
    sample         matched (N,), random (N,), number, positive_fraction             two int64 lists of
                                                   rows: the positives, the negatives
    nms            boxes (N, 4), scores (N,), threshold                             (M,) int64 rows that
                                                   stay, by falling score
    assign_levels  boxes (N, 4), levels, canonical_scale, epsilon, plus_one         (N,) int64, 0 is P2
    roi_align      features (B, C, H, W), rois (R, 5), output_size,                 (R, C, P, P)
                   spatial_scale, sampling_ratio, aligned
    mask_target    mask (H, W) float of one object, boxes (P, 4), size, aligned     (P, M, M)
    mask_loss      logits (P, K, M, M), labels (P,), targets (P, M, M)              the mean, a scalar
    paste          grids (N, M, M), boxes (N, 4), height, width, how                (N, H, W)

Tensor contracts. Boxes are xyxy float32 in pixels of the resized picture (`paste`: of the native
one); K counts the background, class 0; labels are int64; scores are probabilities. A part that the
loss goes through (`roi_align`, `mask_loss`) must be differentiable in its first argument. No part
changes its inputs.

The model's side adds a leading batch: `iou`, `encode`, `decode` and `assign_levels` broadcast over it;
`match` gets rows of -1 for padding; `sample` returns `structures.Samples`; `nms` takes
`(boxes (B, N, 4), scores (B, N), groups (B, N), valid (B, N), threshold)` and returns `(B, N)` bool;
`roi_align` is `roi_ops.pyramid_roi_align`, `mask_target` is `masks.mask_targets`, and `mask_loss` is
`losses.mask_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minimrcnn import boxes, losses, masks, matching, roi_ops
from minimrcnn.structures import Samples


@dataclass(frozen=True)
class Parts:
    """The functions of the model, as the model calls them. The defaults are the package's."""

    iou: Callable[..., Tensor] = boxes.iou
    encode: Callable[..., Tensor] = boxes.encode
    decode: Callable[..., Tensor] = boxes.decode
    match: Callable[..., Tensor] = matching.match
    sample: Callable[..., Samples] = matching.sample
    nms: Callable[..., Tensor] = boxes.batched_nms
    assign_levels: Callable[..., Tensor] = roi_ops.assign_levels
    roi_align: Callable[..., Tensor] = roi_ops.pyramid_roi_align
    mask_target: Callable[..., Tensor] = masks.mask_targets
    mask_loss: Callable[..., Tensor] = losses.mask_loss
    paste: Callable[..., Tensor] = masks.paste


def per_image(name: str, function: Callable) -> Callable:
    """Lift a student's `function` for one picture to what `Parts` expects under `name`.

    Raises:
        ValueError: there is no such part.
    """
    lifts: dict[str, Callable[[Callable], Callable]] = {
        "iou": _broadcast,
        "encode": _broadcast,
        "decode": _broadcast,
        "match": _match,
        "sample": _sample,
        "nms": boxes.nms_by_group,
        "assign_levels": lambda function: function,
        "roi_align": roi_ops.pool_by_level,
        "mask_target": masks.targets_by_object,
        "mask_loss": _mask_loss,
        "paste": lambda function: function,
    }
    if name not in lifts:
        raise ValueError(f"there is no part {name!r}; the parts are {', '.join(lifts)}")
    return lifts[name](function)


def _broadcast(function: Callable) -> Callable:
    def lifted(a: Tensor, b: Tensor, *rest: object) -> Tensor:
        if a.dim() == b.dim() == 2:
            return function(a, b, *rest)
        count = max(a.shape[0] if a.dim() == 3 else 1, b.shape[0] if b.dim() == 3 else 1)
        a, b = a.expand(count, *a.shape[-2:]), b.expand(count, *b.shape[-2:])
        return torch.stack([lifted(x, y, *rest) for x, y in zip(a, b, strict=True)])

    return lifted


def _match(function: Callable) -> Callable:
    def lifted(overlap: Tensor, high: float, low: float, keep_best: bool) -> Tensor:
        matched = torch.full(overlap[:, 0].shape, matching.BELOW, device=overlap.device)  # (B, N)
        for image, rows in enumerate(overlap):
            real = (rows >= 0).any(dim=1).nonzero()[:, 0]  # padding holds -1
            if len(real):
                found = function(rows[real], high, low, keep_best)
                matched[image] = torch.where(found >= 0, real[found.clamp(min=0)], found)
        return matched

    return lifted


def _sample(function: Callable) -> Callable:
    def lifted(matched: Tensor, random: Tensor, number: int, positive_fraction: float) -> Samples:
        size = min(number, matched.shape[1])
        index = torch.zeros(len(matched), size, dtype=torch.int64, device=matched.device)
        positive, valid = torch.zeros_like(index, dtype=torch.bool), torch.zeros_like(index, dtype=torch.bool)
        for i in range(len(matched)):
            positives, negatives = function(matched[i], random[i], number, positive_fraction)
            rows = torch.cat([positives, negatives])[:size]
            index[i, : len(rows)] = rows
            positive[i, : len(positives)] = True
            valid[i, : len(rows)] = True
        return Samples(index, matched.gather(1, index).clamp(min=0), positive, valid)

    return lifted


def _mask_loss(function: Callable) -> Callable:
    def lifted(logits: Tensor, labels: Tensor, targets: Tensor, valid: Tensor, normaliser: Tensor) -> Tensor:
        rows = valid.nonzero()[:, 0]
        if not len(rows):
            return logits.sum() * 0
        return function(logits[rows], labels[rows], targets[rows]) * len(rows) / normaliser

    return lifted
