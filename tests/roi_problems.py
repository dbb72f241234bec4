"""Maps and RoIs for the tests of the RoI operations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**31 - 1)
LAYOUTS = ("contiguous", "channels_last", "strided")
KINDS = ("usual", "flipped", "empty", "far", "border")


def laid_out(features: Tensor, layout: str) -> Tensor:
    """The same map in another memory layout."""
    if layout == "channels_last":
        return features.to(memory_format=torch.channels_last)
    if layout == "strided":  # every other row and column of a larger map
        larger = features.new_full((*features.shape[:2], 2 * features.shape[2], 2 * features.shape[3]), 9.0)
        larger[:, :, ::2, ::2] = features
        return larger[:, :, ::2, ::2]
    return features


def some_rois(kind: str, count: int, pictures: int, size: tuple[int, int], stride: int, seed: int) -> Tensor:
    """(count, 5) RoIs of one kind around a map of `size` cells.

    Corners are multiples of 1/4 px and strides are powers of 2, so that both sides compute the same
    positions; at one cell outside the map, where RoIAlign jumps to 0, a rounding would show as an error.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    side = 4 * stride * max(height, width)  # in quarters of a pixel
    corner = torch.randint(-side // 2, 3 * side // 2, (count, 2), generator=generator) / 4
    extent = torch.randint(0, side, (count, 2), generator=generator) / 4
    if kind == "flipped":
        extent = -extent
    elif kind == "empty":
        extent = extent * 0
    elif kind == "far":
        corner = corner + 10 * side
    elif kind == "border":
        corner, extent = corner * 0 - stride, extent * 0 + stride * torch.tensor([width + 2, height + 2])
    index = torch.randint(pictures, (count, 1), generator=generator)
    return torch.cat([index.float(), corner, corner + extent], dim=1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict]:
    """Features (B, C, H, W), RoIs (R, 5) of every kind, and the settings that all operations have."""
    pictures, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    seed = draw(seeds)
    features = torch.randn(pictures, channels, *size, generator=torch.Generator().manual_seed(seed))
    kind, count = draw(st.sampled_from(KINDS)), draw(st.integers(0, 6))
    rois = some_rois(kind, count, pictures, size, stride, seed + 1)
    settings = {"output_size": draw(st.sampled_from([1, 2, 4, (2, 4)])), "spatial_scale": 1 / stride}
    return laid_out(features, draw(st.sampled_from(LAYOUTS))), rois, settings


@st.composite
def sampled_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict]:
    """The same with a sampling ratio."""
    features, rois, settings = draw(problems())
    settings["sampling_ratio"] = draw(st.sampled_from([-1, 0, 1, 2, 3]))
    if settings["sampling_ratio"] == 3:
        # Thirds are no binary fractions: shift the RoIs off every multiple of an eighth of a cell.
        rois[:, 1:] += 0.01 / settings["spatial_scale"]
    return features, rois, settings


def gradient(operation, features: Tensor, *rest: object, **settings: object) -> tuple[Tensor, Tensor]:
    """Crops, and the gradient of a weighted sum of them in the features."""
    features = features.detach().requires_grad_()
    crops = operation(features, *rest, **settings)
    weight = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0)).to(crops.dtype)
    (crops * weight).sum().backward()
    return crops.detach(), features.grad
