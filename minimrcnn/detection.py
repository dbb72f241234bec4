"""From the pyramid to detections: which boxes they are, and their masks (paper, section 3.1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimrcnn import boxes as box_ops
from minimrcnn.config import Architecture, Conventions
from minimrcnn.parts import Parts
from minimrcnn.structures import Batch, Proposals, flatten_rois

if TYPE_CHECKING:
    from minimrcnn.model import MaskRCNN


@dataclass
class Detections:
    """The answer for a batch: by falling score, padded with rows that are not valid."""

    boxes: Tensor  # (B, D, 4) float32, xyxy in pixels of the resized picture
    scores: Tensor  # (B, D) float32
    labels: Tensor  # (B, D) int64
    valid: Tensor  # (B, D) bool
    overflow: Tensor  # (B,) bool: more candidates than `Architecture.candidates`, the lowest scores fell out


def detect(model: MaskRCNN, batch: Batch, stages: dict) -> tuple[Detections, Tensor]:
    """Proposals, classes and boxes, NMS and the top 100, then masks for those alone.

    Args:
        stages: what `MaskRCNN.dense_stages` left; the stages of detection are added to it.

    Returns:
        The detections, and their grids of mask probabilities (B, D, M, M); M is 0 without masks.
    """
    a = model.architecture
    proposals = stages["proposals"] = model.rpn.propose(
        stages["objectness"], stages["deltas"], stages["anchors"], batch.sizes, training=False
    )
    rois = flatten_rois(proposals.boxes, proposals.valid)
    logits, deltas = model.box_branch(stages["pyramid"], rois)
    stages["test_class_logits"], stages["test_box_deltas"] = logits, deltas
    scores = rois.spread(logits.float().softmax(dim=1), proposals.valid.shape)  # (B, K, classes)
    deltas = rois.spread(deltas.float(), proposals.valid.shape)  # (B, K, classes, 4)
    scores = scores.masked_fill(~proposals.valid[..., None], 0)
    found = stages["detections"] = select(
        proposals, scores, deltas, batch.sizes, a, model.conventions, model.parts
    )
    if not a.masks:
        return found, found.boxes.new_zeros(*found.valid.shape, 0, 0)
    rois = flatten_rois(found.boxes, found.valid)
    logits = model.mask_branch(stages["pyramid"], rois)
    label = found.labels.flatten()[rois.rows]
    # One map a class is predicted; the box head's class says which is meant.
    chosen = logits[torch.arange(len(label), device=label.device), label].float().sigmoid()
    grids = stages["grids"] = rois.spread(chosen, found.valid.shape)
    return found, grids


def select(
    proposals: Proposals,
    scores: Tensor,
    deltas: Tensor,
    sizes: Tensor,
    architecture: Architecture,
    conventions: Conventions,
    parts: Parts,
) -> Detections:
    """From (proposal, class) pairs to detections: threshold, decode, NMS within a class, top 100.

    Args:
        proposals: K a picture. scores: (B, K, classes) probabilities; deltas: (B, K, classes, 4).
        sizes: (B, 2), (height, width) of the resized pictures, to which boxes are cut.
    """
    a, c = architecture, conventions
    classes = scores.shape[2]
    pairs = scores[..., 1:].flatten(1)  # (B, K * (classes - 1)), without the background
    count = (pairs > a.score_threshold).sum(dim=1)  # (B,)
    cap = int(count.max()) if pairs.device.type == "cpu" else a.candidates
    score, index = pairs.topk(min(max(cap, 1), pairs.shape[1]), dim=1)  # (B, N)
    row, label = index // (classes - 1), index % (classes - 1) + 1
    proposal = proposals.boxes.gather(1, row[..., None].expand(-1, -1, 4))
    delta = deltas.flatten(1, 2).gather(1, (row * classes + label)[..., None].expand(-1, -1, 4))
    box = parts.decode(delta, proposal, a.box_weights, c.plus_one)
    box = box_ops.clip(box, sizes, c.plus_one)  # (B, N, 4)
    large = box_ops.large_enough(box, c.detection_min_size, c.plus_one)
    candidate = (score > a.score_threshold) & large
    measured = box_ops.to_lengths(box, c.plus_one)
    keep = parts.nms(measured, score, label, candidate, c.nms_threshold)
    score, order = score.masked_fill(~keep, -1).topk(min(a.detections, score.shape[1]), dim=1)  # (B, D)
    box = box.gather(1, order[..., None].expand(-1, -1, 4))
    return Detections(box, score, label.gather(1, order), score >= 0, count > cap)


def to_pictures(
    found: Detections,
    grids: Tensor,
    batch: Batch,
    architecture: Architecture,
    conventions: Conventions,
    paste: Callable[..., Tensor] | None,
) -> list[dict[str, Tensor]]:
    """Detections of fixed shape to a list of dicts, in native pixels; the first wait for the GPU.

    Args:
        found: D a picture. grids: (B, D, M, M), their mask probabilities; unused without a mask branch.
        paste: `Parts.paste`, for "masks" (N, 1, H, W) as large as the picture; None leaves (N, M, M).
    """
    if bool(found.overflow.any()):
        warnings.warn(
            f"more than {architecture.candidates} candidates above the score threshold "
            f"{architecture.score_threshold} in a picture: the lowest were dropped before NMS. "
            "Raise Architecture.candidates or score_threshold.",
            stacklevel=3,
        )
    boxes = to_native(found.boxes, batch)
    results = []
    for i, ((height, width), count) in enumerate(
        zip(batch.native_shapes, found.valid.sum(dim=1).tolist(), strict=True)
    ):
        result = {
            "boxes": boxes[i, :count],
            "labels": found.labels[i, :count],
            "scores": found.scores[i, :count],
        }
        if architecture.masks:
            result["masks"] = grids[i, :count]
            if paste:
                whole = paste(result["masks"], result["boxes"], height, width, conventions.paste)
                result["masks"] = whole[:, None]
        results.append(result)
    return results


def to_native(boxes: Tensor, batch: Batch) -> Tensor:
    """Boxes (B, K, 4) in pixels of the resized pictures to pixels of the native ones."""
    scale = (batch.native_sizes.float() / batch.sizes.float()).flip(1).repeat(1, 2)
    return boxes * scale[:, None]
