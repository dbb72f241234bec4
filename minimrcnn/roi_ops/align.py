"""RoIAlign in vectorised PyTorch: every bin is a weighted sum of a few feature vectors.

Paper, section 3 and figure 3. Bilinear sampling at 4 points a bin reads 4 neighbours a point: with the
map laid out as rows of C channels, a bin is the sum of 16 rows with 16 weights, which is what
`F.embedding_bag` computes, forward and backward, in one call.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(
    start: Tensor, length: Tensor, bins: int, counts: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Where RoIs are sampled along one axis, in cells of the map.

    Args:
        start, length: (R,) where each RoI begins and how long it is.
        counts: (R,) int64, sampling points a bin; most: the largest of them.

    Returns:
        positions (R, bins, most), and weights of the same shape: 1 / count, 0 past a RoI's own count.
    """
    step = (length / bins)[:, None, None]  # (R, 1, 1)
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    point = torch.arange(most, device=start.device, dtype=start.dtype)
    number = counts.clamp(min=1)[:, None, None].to(start.dtype)
    positions = start[:, None, None] + bin_index * step + (point + 0.5) * step / number
    weights = torch.where(point < counts[:, None, None], 1 / number, 0.0).expand_as(positions)
    return positions, weights


def neighbours(positions: Tensor, weights: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells on either side of each position, and what each contributes.

    Cell i has its value at coordinate i. Up to one cell outside the map the border's value is used,
    farther out a point counts as zero: Detectron's rule, which all implementations share.

    Args:
        positions, weights: (R, P, S); size: cells along the axis, broadcast against them.

    Returns:
        (R, P, 2S) int64 indices and (R, P, 2S) weights.
    """
    inside = (positions >= -1) & (positions <= size)
    clamped = torch.minimum(positions.clamp(min=0), (size - 1).to(positions.dtype))
    low = clamped.floor()
    high = torch.minimum(low + 1, (size - 1).to(positions.dtype))
    upper = clamped - low  # the share of the high neighbour
    weights = weights * inside
    index = torch.cat([low, high], dim=-1).to(torch.int64)
    return index, torch.cat([weights * (1 - upper), weights * upper], dim=-1)


def axis(
    low: Tensor, high: Tensor, bins: int, sampling_ratio: int, aligned: bool, size: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Indices and weights of one axis, (R, bins, 2 * most) each, for RoIs from `low` to `high` in cells.

    `most` is the largest number of points a bin that any of the RoIs may need.
    """
    if aligned:
        # Pixel i covers [i, i+1) and has its value at its centre, i + .5: shift by that half.
        low, high = low - 0.5, high - 0.5
        length = high - low
    else:
        length = (high - low).clamp(min=1)
    if sampling_ratio > 0:
        counts = torch.full_like(low, sampling_ratio, dtype=torch.int64)
    else:
        # An aligned RoI may be empty or inside out: no points, so that its bins are 0. One that reaches
        # far over the picture makes do with `most`: counted but not taken, points would lose weight.
        counts = torch.ceil(length / bins).clamp(0, most).to(torch.int64)
    positions, weights = sample_points(low, length, bins, counts, most)
    return neighbours(positions, weights, size)


def gather_bins(
    table: Tensor,
    rois: Tensor,
    scale: Tensor,
    start: Tensor,
    size: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign on maps that lie as rows in one table.

    Args:
        table: (T, C), rows of one or several maps, each map row by row.
        rois: (R, 4) xyxy in pixels of the resized picture.
        scale: (R,) cells a pixel of the map each RoI reads; start: (R,) its first row in the table;
        size: (R, 2) its (height, width).

    Returns:
        (R, C, output_size, output_size).
    """
    cells = rois.to(torch.float32) * scale[:, None]
    height, width = size[:, 0, None, None], size[:, 1, None, None]
    most = sampling_ratio
    if sampling_ratio <= 0:  # as many points as the longest RoI has cells a bin
        shifted = cells - 0.5 if aligned else cells  # for the rounding that `axis` will see
        longest = (shifted[:, 2:] - shifted[:, :2]).amax().item() if len(cells) else 1
        most = max(math.ceil(longest / output_size), 1)
    y, weight_y = axis(cells[:, 1], cells[:, 3], output_size, sampling_ratio, aligned, height, most)
    x, weight_x = axis(cells[:, 0], cells[:, 2], output_size, sampling_ratio, aligned, width, most)
    rows = start[:, None, None] + y * width  # (R, P, 2S)
    index = rows[:, :, None, :, None] + x[:, None, :, None, :]  # (R, P, P, 2S, 2S)
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    bags = index.flatten(0, 2).flatten(1), weight.flatten(0, 2).flatten(1).to(table.dtype)
    pooled = F.embedding_bag(bags[0], table, mode="sum", per_sample_weights=bags[1])  # (R * P * P, C)
    return pooled.view(len(rois), output_size, output_size, table.shape[1]).permute(0, 3, 1, 2)


def roi_align(
    features: Tensor, rois: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign on one map; the same numbers as torchvision.ops.roi_align.

    Args:
        features: (B, C, H, W). rois: (R, 5), batch index and xyxy in pixels of the resized picture.
        output_size: bins along each side. spatial_scale: cells a pixel (1/16 for stride 16).
        sampling_ratio: sampling points along each side of a bin; 0 takes as many as the bin has cells.
        aligned: subtract the half pixel (detectron2) or not (the original, torchvision's models).

    Returns:
        (R, C, output_size, output_size), in the dtype of the features.
    """
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # (B * H * W, C)
    count = len(rois)
    start = rois[:, 0].to(torch.int64) * (height * width)
    scale = torch.full((count,), spatial_scale, device=rois.device)
    size = torch.tensor([height, width], device=rois.device).expand(count, 2)
    return gather_bins(table, rois[:, 1:], scale, start, size, output_size, sampling_ratio, aligned)
