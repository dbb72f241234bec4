"""Anchors: the fixed boxes that the RPN classifies and moves (Faster R-CNN, section 3.1.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from minimrcnn.config import Conventions


def cell_anchors(size: float, ratios: tuple[float, ...], base: str, stride: int) -> Tensor:
    """The anchors of one cell, around its origin: (A, 4) xyxy in pixels of the resized picture.

    Args:
        size: side of the square anchor; the others have the same area.
        ratios: height / width of each.
        base: "rounded" (torchvision rounds the corners to whole pixels), "exact" (detectron2 does
            not) or "detectron" (rounds width and height of a stride-sized cell, counts pixels, and
            scales the result).
        stride: pixels between two cells; only "detectron" needs it.
    """
    ratio = torch.tensor(ratios, dtype=torch.float32)  # (A,)
    if base == "detectron":
        width = torch.round(torch.sqrt(stride * stride / ratio))
        height = torch.round(width * ratio)
        half = torch.stack([width, height], dim=1) * (size / stride) / 2 - 0.5  # (A, 2)
        return torch.cat([-half, half], dim=1) + (stride - 1) / 2
    root = torch.sqrt(ratio)
    half = torch.stack([size / root, size * root], dim=1) / 2  # (A, 2)
    anchors = torch.cat([-half, half], dim=1)
    return anchors.round() if base == "rounded" else anchors


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def grid_anchors(
    feature_shapes: tuple[tuple[int, int], ...],
    padded_size: tuple[int, int],
    sizes: tuple[float, ...],
    strides: tuple[int, ...],
    ratios: tuple[float, ...],
    conventions: Conventions,
    device: torch.device,
) -> list[Tensor]:
    """The anchors of every level: a list of (H * W * A, 4), rows in the order H, W, A; kept for next time.

    `padded_size` is the (height, width) of the batch. Under anchor_stride="from_padding" the stride is
    padded_size // feature size, an axis at a time, as torchvision has it: at a padded height of 800 the
    25 -> 13 rows of P6 get 61 px, not 64, and published weights were trained with that.
    """
    levels = []
    for (height, width), size, nominal in zip(feature_shapes, sizes, strides, strict=True):
        cell = cell_anchors(size, ratios, conventions.anchor_base, nominal)  # (A, 4)
        stride_y, stride_x = padded_size[0] // height, padded_size[1] // width
        if conventions.anchor_stride == "fixed":
            stride_y = stride_x = nominal
        ys = torch.arange(height, dtype=torch.float32) * stride_y
        xs = torch.arange(width, dtype=torch.float32) * stride_x
        y, x = torch.meshgrid(ys, xs, indexing="ij")
        shift = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
        levels.append((shift[:, :, None] + cell).reshape(-1, 4).to(device))  # (H * W * A, 4)
    return levels
