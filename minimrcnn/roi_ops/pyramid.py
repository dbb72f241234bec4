"""RoIAlign on a feature pyramid: which level a RoI reads, and all levels in one gather."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from minimrcnn.boxes import area
from minimrcnn.roi_ops.align import gather_bins
from minimrcnn.structures import constant


def assign_levels(
    boxes: Tensor, levels: int, canonical_scale: float, epsilon: tuple[str, float], plus_one: int = 0
) -> Tensor:
    """FPN, equation 1: k = floor(4 + log2(sqrt(area) / 224)), clamped to the levels there are.

    Args:
        boxes: (..., 4) in pixels of the resized picture. levels: how many, P2 being 0.
        canonical_scale: side of the RoI that goes to P4; 224, the size of ImageNet crops.
        epsilon: ("outside", e) adds e to the logarithm, ("inside", e) to its argument. It decides for
            RoIs of exactly 112, 224 or 448 px, and keeps an empty RoI finite when inside.

    Returns:
        (...) int64, 0 for P2.
    """
    side = area(boxes.float(), plus_one).clamp(min=0).sqrt() / canonical_scale
    where, small = epsilon
    # Left to right, as torchvision adds: another order of these sums moves RoIs of about 224 px.
    level = 4 + torch.log2(side) + small if where == "outside" else 4 + torch.log2(side + small)
    return torch.floor(level).clamp(2, 1 + levels).to(torch.int64) - 2


def pyramid_roi_align(
    features: list[Tensor],
    boxes: Tensor,
    batch: Tensor,
    levels: Tensor,
    strides: tuple[int, ...],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool each RoI from its level: (R, C, output_size, output_size).

    Args:
        features: one (B, C, H, W) a level. boxes: (R, 4) xyxy in pixels of the resized picture.
        batch, levels: (R,) int64. strides: pixels a cell of each level.

    All maps are laid behind one another as rows of one table, so that no RoI waits for another level's.
    With the adaptive sampling ratio, where the number of points varies, torchvision's operator runs.
    """
    if sampling_ratio <= 0:
        torchvision_align = torchvision.ops.roi_align
        return pool_by_level(torchvision_align)(
            features, boxes, batch, levels, strides, output_size, sampling_ratio, aligned
        )
    rows, first = [], 0
    for height, width in (f.shape[-2:] for f in features):
        rows.append((height, width, height * width, first))  # the last: where the level begins in the table
        first += len(features[0]) * height * width
    facts = constant(tuple(rows), boxes.device, torch.int64)  # (L, 4)
    scales = constant(tuple(1 / s for s in strides), boxes.device)  # (L,)
    table = torch.cat([f.permute(0, 2, 3, 1).flatten(0, 2) for f in features])  # (all cells, C)
    size, cell, first = facts[levels].split([2, 1, 1], dim=1)
    start = first[:, 0] + batch * cell[:, 0]
    return gather_bins(table, boxes, scales[levels], start, size, output_size, sampling_ratio, aligned)


def pool_by_level(roi_align: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lift a RoIAlign of one map, with the signature of `roi_ops.roi_align`, to a pyramid."""

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
            crop = roi_align(
                map_, rois[rows].to(map_.dtype), output_size, 1 / stride, sampling_ratio, aligned
            )
            crops = crops.index_copy(0, rows, crop.to(crops.dtype))
        return crops

    return pooled
