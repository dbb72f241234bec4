"""The parts that can be replaced: the functions that a student writes, and the contract of each.

A student writes for one picture, without padding; the model works on batches with it. `Parts` holds
the model's side, `lifting.per_image(name, function)` lifts the student's function to it with a loop.

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
changes its inputs. Training tries each part that is not the package's (`engine.own_parts`).

The model's side adds a leading batch: `iou`, `encode`, `decode` and `assign_levels` broadcast over it;
`match` gets rows of -1 for padding; `sample` returns `structures.Samples`; `nms` takes
`(boxes (B, N, 4), scores (B, N), groups (B, N), valid (B, N), threshold)` and returns `(B, N)` bool;
`roi_align` is `roi_ops.pyramid_roi_align`, `mask_target` is `masks.mask_targets`, and `mask_loss` is
`losses.mask_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minimrcnn import boxes, losses, masks, matching, pasting, roi_ops
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
    paste: Callable[..., Tensor] = pasting.paste


NEEDS_GRADIENT = ("roi_align", "mask_loss")  # the loss goes through these
DEFAULT = Parts()
