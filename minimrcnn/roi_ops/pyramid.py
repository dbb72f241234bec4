"""RoIAlign on a feature pyramid: which level a RoI reads, and all levels in one call."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from minimrcnn.boxes import area
from minimrcnn.roi_ops import checks
from minimrcnn.roi_ops.crop import crop
from minimrcnn.roi_ops.sampling import extent
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
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool each RoI from its level: (R, C, P, P), in the dtype of the features; differentiable in them.

    Args:
        features: one (B, C, H, W) a level. boxes: (R, 4) xyxy in pixels of the resized picture.
        batch, levels: (R,) int64. strides: pixels a cell of each level.
        output_size, sampling_ratio, aligned: as in `roi_align`.

    All levels are one weighted sum: where a RoI lies is worked out in cells of its own level, and each bin
    is written once, to its place. On CUDA the Triton kernel does it in one launch, where Triton is installed.

    Raises:
        ValueError: bad input, said before anything is computed.
    """
    check_pyramid(features, boxes, batch, levels, strides)
    checks.check_sampling_ratio(sampling_ratio)
    pair = checks.size_pair(output_size)
    if prefers_triton(features):
        from minimrcnn.roi_ops.triton_align import pyramid_roi_align_triton

        return pyramid_roi_align_triton(
            features, boxes, batch, levels, strides, output_size, sampling_ratio, aligned
        )
    scales = constant(tuple(1 / s for s in strides), boxes.device)  # (L,) cells a pixel
    cells = checks.at_least_float32(boxes) * scales[levels][:, None]
    start, length = extent(cells[:, :2], cells[:, 2:], aligned)
    rows = levels.argsort(stable=True).split(levels.bincount(minlength=len(features)).tolist())
    return crop(features, rows, start, length, batch, pair, sampling_ratio)


def has_triton() -> bool:
    """Whether Triton is installed: it is for Linux alone."""
    return importlib.util.find_spec("triton") is not None


def prefers_triton(maps: Sequence[Tensor]) -> bool:
    """Whether the Triton kernel is to take these maps: it knows 4 levels at most, and no float64."""
    return maps[0].is_cuda and maps[0].dtype != torch.float64 and len(maps) <= 4 and has_triton()


def check_pyramid(
    features: list[Tensor],
    boxes: Tensor,
    batch: Tensor,
    levels: Tensor,
    strides: tuple[int, ...],
) -> None:
    """What can be wrong with the maps and RoIs of a call of `pyramid_roi_align`."""
    if not len(features) or len(features) != len(strides):
        raise ValueError(f"features: {len(features)} levels, strides: {len(strides)}; want one for each")
    for level, map_ in enumerate(features):
        checks.check_features(map_, f"features[{level}]")
        same = map_.shape[:2] == features[0].shape[:2] and map_.dtype == features[0].dtype
        if not same or map_.device != features[0].device:
            raise ValueError(
                f"features[{level}]: {tuple(map_.shape)} {map_.dtype} on {map_.device}; want the pictures, "
                f"channels, dtype and device of features[0], {tuple(features[0].shape)} {features[0].dtype}"
            )
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not len(boxes) == len(batch) == len(levels):
        raise ValueError(
            f"boxes {tuple(boxes.shape)}, batch {tuple(batch.shape)}, levels {tuple(levels.shape)}; "
            "want (R, 4), (R,) and (R,)"
        )
    checks.check_boxes(boxes, batch, features[0])
    # Every RoI reads a level that there is; looked at on the CPU alone.
    if levels.device.type == "cpu" and len(levels) and not torch.compiler.is_compiling():
        low, high = (int(n) for n in levels.aminmax())
        if low < 0 or high >= len(features):
            last = len(features) - 1
            raise ValueError(f"levels: from {low} to {high}, but the pyramid has levels 0 to {last}")
