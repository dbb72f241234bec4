"""From a function for one picture, as a student writes it, to one for a batch, as the model calls it.

The signatures stand in parts.py. A lift loops over the pictures and takes the padding away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minimrcnn import boxes, matching
from minimrcnn.roi_ops.checks import at_least_float32
from minimrcnn.structures import Samples


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
        "roi_align": pool_by_level,
        "mask_target": targets_by_object,
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


def pool_by_level(roi_align: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lift a RoIAlign of one map, with the signature of `roi_ops.roi_align`, to a pyramid.

    The function sees float32 at least: in half precision a RoI's corner is off by whole pixels.
    """

    def pooled(
        features: list[Tensor],
        boxes: Tensor,
        batch: Tensor,
        levels: Tensor,
        strides: tuple[int, ...],
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
    ) -> Tensor:
        rois = torch.cat([batch[:, None].to(boxes.dtype), boxes], dim=1)  # (R, 5)
        crops = features[0].new_zeros(len(rois), features[0].shape[1], output_size, output_size)
        for level, (map_, stride) in enumerate(zip(features, strides, strict=True)):
            rows = (levels == level).nonzero()[:, 0]
            map_ = at_least_float32(map_)
            here = roi_align(
                map_, rois[rows].to(map_.dtype), output_size, 1 / stride, sampling_ratio, aligned
            )
            crops = crops.index_copy(0, rows, here.to(crops.dtype))
        return crops

    return pooled


def targets_by_object(mask_target: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lift a target function of one full-size mask, `(mask (H, W), boxes (P, 4), size, aligned)`."""

    def lifted(
        crops: Tensor,
        crop_boxes: Tensor,
        boxes: Tensor,
        native: Tensor,
        resized: Tensor,
        size: int,
        aligned: bool,
        binary: bool,
        longest: int,
    ) -> Tensor:
        targets = [boxes.new_zeros(0, size, size)]
        for crop, (x1, y1, x2, y2), box, n, r in zip(
            crops, crop_boxes.tolist(), boxes, native.tolist(), resized.tolist(), strict=True
        ):
            mask = boxes.new_zeros(1, 1, *n)
            mask[0, 0, y1:y2, x1:x2] = crop[: y2 - y1, : x2 - x1]
            mask = F.interpolate(mask, size=r, mode="nearest")[0, 0]
            targets.append(mask_target(mask, box[None], size, aligned))
        target = torch.cat(targets)
        return (target >= 0.5).to(torch.float32) if binary else target

    return lifted
