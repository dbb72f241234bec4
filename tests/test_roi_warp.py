"""RoIWarp against a direct computation in float64, made another way: with interpolation matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn import roi_ops
from tests.roi_problems import gradient, sampled_problems


def at_points(first: float, last: float, bins: int, sampling_ratio: int, cells: int) -> np.ndarray:
    """The matrix (points, cells) that reads a map at the points of one axis; numpy interpolates."""
    length = max(last - first + 1, 1)
    a_bin = sampling_ratio if sampling_ratio > 0 else math.ceil(length / bins)
    edges = np.linspace(first - 0.5, first - 0.5 + length, bins * a_bin + 1)
    points = (edges[:-1] + edges[1:]) / 2
    unit = np.eye(cells)
    matrix = np.stack([np.interp(points, np.arange(cells), unit[i]) for i in range(cells)], axis=1)
    return matrix * ((points >= -1) & (points <= cells))[:, None]


def warp_one(
    features: np.ndarray,
    roi: list[float],
    output_size: tuple[int, int],
    scale: float,
    ratio: int,
    reduce: str,
) -> np.ndarray:
    """One crop of one picture's map (C, H, W), float64."""
    # Away from zero at .5, as decimal rounding is taught; the corners are binary fractions.
    x1, y1, x2, y2 = (math.floor(abs(c * scale) + 0.5) * (1 if c >= 0 else -1) for c in roi)
    (height, width), (cells_y, cells_x) = output_size, features.shape[1:]
    a_y = at_points(y1, y2, height, ratio, cells_y)
    a_x = at_points(x1, x2, width, ratio, cells_x)
    points = np.einsum("ph,chw,qw->cpq", a_y, features, a_x)
    points = points.reshape(len(features), height, len(a_y) // height, width, len(a_x) // width)
    return points.mean(axis=(2, 4)) if reduce == "average" else points.max(axis=(2, 4))


@given(sampled_problems(), st.sampled_from(["average", "max"]))
def test_roi_warp_is_its_definition(problem, reduce):
    features, rois, settings = problem
    pair = (
        settings["output_size"]
        if isinstance(settings["output_size"], tuple)
        else (settings["output_size"],) * 2
    )
    rest = pair, settings["spatial_scale"], settings["sampling_ratio"], reduce
    wanted = [warp_one(features[int(r[0])].double().numpy(), r[1:], *rest) for r in rois.tolist()]
    wanted = torch.tensor(np.array(wanted)).float().view(len(rois), features.shape[1], *pair)
    ours = roi_ops.roi_warp(features, rois, **settings, reduce=reduce)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@given(sampled_problems(), st.sampled_from(["average", "max"]))
def test_the_loop_is_the_same_forward_and_backward(problem, reduce):
    features, rois, settings = problem
    ours, our_gradient = gradient(roi_ops.roi_warp, features, rois[:3], **settings, reduce=reduce)
    loop, loop_gradient = gradient(roi_ops.roi_warp_loop, features, rois[:3], **settings, reduce=reduce)
    torch.testing.assert_close(ours, loop, rtol=0, atol=1e-5)
    if reduce == "average":  # of equal points, a rounding says which gets the gradient
        torch.testing.assert_close(our_gradient, loop_gradient, rtol=0, atol=2e-5)


def test_where_nothing_is_rounded_roi_warp_is_roi_align_half_a_cell_wider():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 12, 12, generator=generator)
    warped = roi_ops.roi_warp(features, torch.tensor([[0, 8.0, 12, 24, 32]]), 5, 0.25)
    aligned = roi_ops.roi_align(features, torch.tensor([[0, 6.0, 10, 26, 34]]), 5, 0.25)
    torch.testing.assert_close(warped, aligned, rtol=0, atol=1e-6)


def test_a_ramp_by_hand():
    """f(x, y) = x + 10 y; 9 to 17 px at stride 4 is 2.25 to 4.25, rounded 2 to 4: middle 3, not 3.25."""
    features = (torch.arange(8.0)[None] + 10 * torch.arange(8.0)[:, None])[None, None]
    roi = torch.tensor([[0, 9.0, 8, 17, 16]])
    assert roi_ops.roi_warp(features, roi, 1, 0.25).item() == pytest.approx(3 + 10 * 3)
    assert roi_ops.roi_align(features, roi, 1, 0.25).item() == pytest.approx(3.25 + 10 * 3)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("reduce", ["average", "max"])
def test_gradient_in_double(sampling_ratio, reduce):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    # The border repeats its value outside, where points tie and a difference quotient has no meaning.
    rois = torch.tensor([[0, 4.0, 4, 8, 8], [1, 4.5, 5, 8, 12]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: roi_ops.roi_warp(x, rois, 2, 0.25, sampling_ratio, reduce), (features,)
    )
