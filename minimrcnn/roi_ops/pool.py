"""RoIPool in vectorised PyTorch: the largest cell of each bin, after two roundings.

Fast R-CNN (Girshick 2015), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimrcnn.roi_ops.checks import at_least_float32
from minimrcnn.roi_ops.rois import check_rois

CHUNK = 1 << 22  # values that are compared at one time


def round_half_away(x: Tensor) -> Tensor:
    """The nearest whole numbers, halves away from 0, as C rounds; torch.round would take 2.5 to 2."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def rounded_rois(rois: Tensor, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """The first rounding: RoIs (R, 5) to whole cells.

    Returns:
        The first cell and the number of cells, both (R, 2), x and y, in floating point. Both ends belong
        to the RoI, and it has at least one cell.
    """
    corners = round_half_away(at_least_float32(rois[:, 1:]) * spatial_scale)
    first, last = corners[:, :2], corners[:, 2:]
    return first, (last - first + 1).clamp(min=1)


def bin_cells(first: Tensor, length: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """The second rounding: the cells of each bin along one axis of a map of `size` cells.

    Args:
        first, length: (R,) in whole cells.

    Returns:
        cells (R, bins, K) int64: all bins have K, a smaller one repeats its last cell, which no maximum
        minds; and (R, bins) bool, whether any cell of the bin lies on the map.
    """
    step = (length / bins)[:, None]
    number = torch.arange(bins, device=first.device, dtype=first.dtype)
    # Floor of the beginning, ceiling of the end: neighbouring bins may share a cell.
    low = (first[:, None] + (number * step).floor()).clamp(0, size).to(torch.int64)  # (R, bins)
    high = (first[:, None] + ((number + 1) * step).ceil()).clamp(0, size).to(torch.int64)
    most = max(int((high - low).amax()), 1) if len(low) else 1
    cells = torch.minimum(low[..., None] + torch.arange(most, device=low.device), high[..., None] - 1)
    return cells.clamp(0, size - 1), high > low


def winners(table: Tensor, row: Tensor, x: Tensor) -> Tensor:
    """Which cell of each bin is the largest, for every channel; the first of equal ones, row by row.

    Args:
        table: (T, C), the cells of the map. row: (R, height, Ky), where in it the rows of each bin begin;
        x: (R, width, Kx), its columns.

    Returns:
        (R, height, width, C) int64, rows of the table.
    """
    found = []
    values = row[:1].numel() * x[:1].numel() * table.shape[1]  # of one RoI
    for row_part, x_part in zip(*(t.split(max(CHUNK // max(values, 1), 1)) for t in (row, x)), strict=True):
        index = (row_part[:, :, None, :, None] + x_part[:, None, :, None, :]).flatten(3)  # (n, h, w, Ky * Kx)
        best = table[index].max(dim=3).indices  # (n, height, width, C), places among the Ky * Kx
        found.append(index.gather(3, best))
    return torch.cat(found)


def roi_pool(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """RoIPool; the same numbers as torchvision.ops.roi_pool.

    The RoI is rounded to whole cells (halves away from 0, both ends included), then each bin to whole cells:
    its beginning down, its end up. A crop holds the largest value of each bin and channel; a bin off the map
    holds 0. The gradient goes to that one cell, the first of equal ones.

    Args:
        features: (B, C, H, W), any floating point dtype and memory layout.
        rois: (R, 5), the picture's index and x1, y1, x2, y2 in pixels of the resized picture, or a list
            of boxes (K, 4), one tensor a picture.
        output_size: bins along each side, or (height, width).
        spatial_scale: cells a pixel (1/16 for stride 16).

    Returns:
        (R, C, height, width), in the dtype of the features.

    Raises:
        ValueError: bad input, said before anything is computed (rois.py).
    """
    rois, (height, width) = check_rois(features, rois, output_size, spatial_scale)
    channels, map_height, map_width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # (B * H * W, C)
    first, length = rounded_rois(rois, spatial_scale)
    x, some_x = bin_cells(first[:, 0], length[:, 0], width, map_width)  # (R, width, Kx), (R, width)
    y, some_y = bin_cells(first[:, 1], length[:, 1], height, map_height)
    row = (rois[:, 0].to(torch.int64)[:, None, None] * map_height + y) * map_width  # (R, height, Ky)
    cells = winners(table.detach(), row, x)  # (R, height, width, C)
    crops = table[cells, torch.arange(channels, device=table.device)].permute(0, 3, 1, 2)
    return crops.masked_fill(~(some_y[:, :, None] & some_x[:, None, :])[:, None], 0)
