"""RoIAlign of one map, in each of its implementations; the vectorised one is crop.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

from minimrcnn.roi_ops.checks import at_least_float32
from minimrcnn.roi_ops.crop import crop
from minimrcnn.roi_ops.loops import no_crops, roi_align_loop
from minimrcnn.roi_ops.pyramid import has_triton, prefers_triton
from minimrcnn.roi_ops.rois import REDUCE, check_rois, one_of
from minimrcnn.roi_ops.sampling import adaptive_points, extent
from minimrcnn.structures import constant

IMPLEMENTATIONS = ("auto", "loop", "pytorch", "torchvision", "triton")


def largest_point(
    features: Tensor,
    start: Tensor,
    length: Tensor,
    batch: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """Bilinear crops with the largest of each bin's points (paper, Table 2c). Arguments as in `crop`.

    n points a bin are n times as many bins of one point, which are put together here. All points are in
    memory at one time: with n along each axis, n * n times the output.
    """
    height, width = output_size
    if sampling_ratio > 0:
        counts = torch.full_like(length, sampling_ratio, dtype=torch.int64)  # (R, 2), along y and x
    else:
        counts = adaptive_points(length.flip(1) / constant((height, width), length.device))
    crops = no_crops(features, len(start), output_size)
    for ny, nx in counts.unique(dim=0).tolist():
        if ny and nx:
            rows = (counts == counts.new_tensor([ny, nx])).all(dim=1).nonzero()[:, 0]
            every = torch.arange(len(rows), device=rows.device)
            fine = (height * ny, width * nx)
            points = crop([features], [every], start[rows], length[rows], batch[rows], fine, 1)
            points = points.unflatten(2, (height, ny)).unflatten(4, (width, nx))
            largest = points.transpose(3, 4).flatten(4).max(dim=4).values  # max_pool2d may vary on a GPU
            crops = crops.index_copy(0, rows, largest)
    return crops


def sample_map(
    features: Tensor,
    start: Tensor,
    length: Tensor,
    batch: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    reduce: str,
) -> Tensor:
    """What RoIAlign and RoIWarp share: RoIs sampled from one map, each bin one number of its points."""
    if reduce == "max":
        return largest_point(features, start, length, batch, output_size, sampling_ratio)
    every = torch.arange(len(start), device=start.device)
    return crop([features], [every], start, length, batch, output_size, sampling_ratio)


def roi_align(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
    reduce: str = "average",
    implementation: str = "auto",
) -> Tensor:
    """RoIAlign on one map; the same numbers as torchvision.ops.roi_align.

    Args:
        features: (B, C, H, W), any floating point dtype and memory layout. A channels_last float32 map is
            read as it lies; of any other the cells that RoIs touch are copied first.
        rois: (R, 5), the picture's index and x1, y1, x2, y2 in pixels of the resized picture, or a list
            of boxes (K, 4), one tensor a picture.
        output_size: bins along each side, or (height, width).
        spatial_scale: cells a pixel (1/16 for stride 16).
        sampling_ratio: points along each side of a bin; 0 or less takes as many as the bin has cells.
        aligned: subtract the half pixel (detectron2) or not (the original, torchvision's models).
        reduce: "average" or "max" over the points of a bin (paper, Table 2c).
        implementation: "loop" (loops.py), "pytorch" (crop.py), "torchvision", "triton", or "auto": Triton
            on CUDA where it is installed, else PyTorch. The last two know the average alone.

    Returns:
        (R, C, height, width), in the dtype of the features; differentiable in them.

    Raises:
        ValueError: bad input, said before anything is computed (rois.py).
    """
    one_of(implementation, IMPLEMENTATIONS, "implementation")
    one_of(reduce, REDUCE, "reduce")
    rois, pair = check_rois(features, rois, output_size, spatial_scale, sampling_ratio)
    if implementation == "auto":
        implementation = "triton" if reduce == "average" and prefers_triton([features]) else "pytorch"
    if implementation in ("torchvision", "triton") and reduce != "average":
        raise ValueError(f"reduce='max': {implementation} averages only; choose implementation='pytorch'")
    if implementation == "loop":
        return roi_align_loop(features, rois, pair, spatial_scale, sampling_ratio, aligned, reduce)
    if implementation == "torchvision":
        return torchvision_align(features, rois, pair, spatial_scale, sampling_ratio, aligned)
    if implementation == "triton":
        return triton_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned)
    cells = at_least_float32(rois[:, 1:]) * spatial_scale
    start, length = extent(cells[:, :2], cells[:, 2:], aligned)
    batch = rois[:, 0].to(torch.int64)
    return sample_map(features, start, length, batch, pair, sampling_ratio, reduce)


def torchvision_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """torchvision's operator, in float32 at least: its half precision works out positions in half."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    crops = torchvision.ops.roi_align(
        features.to(dtype), rois.to(dtype), output_size, spatial_scale, sampling_ratio, aligned
    )
    return crops.to(features.dtype)


def triton_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """One map is a pyramid of one level."""
    if not has_triton():
        raise ValueError(
            "implementation='triton': Triton is not installed; choose 'pytorch' or 'torchvision'"
        )
    from minimrcnn.roi_ops.triton_align import pyramid_roi_align_triton

    batch = rois[:, 0].to(torch.int64)
    rest = ((1 / spatial_scale,), output_size, sampling_ratio, aligned)
    return pyramid_roi_align_triton([features], rois[:, 1:], batch, torch.zeros_like(batch), *rest)
