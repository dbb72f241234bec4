"""RoIAlign against torchvision's operator, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from minimrcnn import roi_ops
from minimrcnn.roi_ops.align import axis

seeds = st.integers(0, 2**31 - 1)


@st.composite
def problems(draw):
    """Features, RoIs of every kind, and settings.

    Corners are multiples of 1/4 px and strides are powers of 2, so that both sides compute the same
    positions; at one cell outside the map, where RoIAlign jumps to 0, a rounding would show as an error.
    """
    pictures, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    generator = torch.Generator().manual_seed(draw(seeds))
    features = torch.randn(pictures, channels, height, width, generator=generator)
    count = draw(st.integers(0, 6))
    side = 4 * stride * max(height, width)  # in quarters of a pixel
    corner = torch.randint(-side // 2, 3 * side // 2, (count, 2), generator=generator) / 4
    size = torch.randint(0, side, (count, 2), generator=generator) / 4
    kind = draw(st.sampled_from(["usual", "flipped", "empty", "far", "border"]))
    if kind == "flipped":
        size = -size
    elif kind == "empty":
        size = size * 0
    elif kind == "far":
        corner = corner + 10 * side
    elif kind == "border":
        corner, size = corner * 0 - stride, size * 0 + stride * torch.tensor([width + 2, height + 2])
    index = torch.randint(pictures, (count, 1), generator=generator)
    rois = torch.cat([index.float(), corner, corner + size], dim=1)
    settings = {
        "output_size": draw(st.sampled_from([1, 2, 4])),
        "spatial_scale": 1 / stride,
        "sampling_ratio": draw(st.sampled_from([0, 1, 2, 3])),
        "aligned": draw(st.booleans()),
    }
    if settings["sampling_ratio"] == 3:
        # Thirds are no binary fractions: shift the RoIs off every multiple of an eighth of a cell.
        rois[:, 1:] += 0.01 * stride
    return features, rois, settings


@given(problems())
def test_roi_align_is_torchvisions_forward_and_backward(problem):
    features, rois, settings = problem
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    output = roi_ops.roi_align(ours, rois, **settings)
    reference = torchvision.ops.roi_align(theirs, rois, **settings)
    torch.testing.assert_close(output, reference, rtol=0, atol=1e-5)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (output * weight).sum().backward()
    (reference * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5)


@given(seeds, st.sampled_from([0, 2]), st.booleans(), st.sampled_from([7, 14]))
def test_roi_align_at_fractional_corners(seed, sampling_ratio, aligned, output_size):
    """Inside the map nothing jumps, and any corner will do."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 4, 25, 30, generator=generator)
    corner = torch.rand(5, 2, generator=generator) * torch.tensor([200.0, 150])
    size = torch.rand(5, 2, generator=generator) * torch.tensor([160.0, 140])
    batch = torch.randint(2, (5, 1), generator=generator)
    rois = torch.cat([batch.float(), corner, torch.minimum(corner + size, torch.tensor([239.0, 199]))], dim=1)
    settings = (output_size, 1 / 8, sampling_ratio, aligned)
    theirs = torchvision.ops.roi_align(features, rois, *settings)
    torch.testing.assert_close(roi_ops.roi_align(features, rois, *settings), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_in_double(sampling_ratio, aligned):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.5, 2.25, 11, 17], [1, -3, 0, 6, 9], [1, 5, 5, 5, 5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: roi_ops.roi_align(x, rois, 2, 0.25, sampling_ratio, aligned), (features,)
    )


def test_no_rois_give_no_crops_and_a_gradient_of_zero():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    crops = roi_ops.roi_align(features, torch.zeros(0, 5), 7, 0.25, 2, False)
    assert crops.shape == (0, 3, 7, 7)
    crops.sum().backward()
    assert not bool(features.grad.any())


def test_one_bin_by_hand():
    """f(x, y) = x + 10 y is bilinear, so every bin is f at the middle of its points."""
    x, y = torch.arange(8.0), torch.arange(8.0)
    features = (x[None] + 10 * y[:, None])[None, None]
    roi = torch.tensor([[0, 4.0, 8, 12, 16]])  # cells 1 to 3 by 2 to 4 at stride 4
    assert roi_ops.roi_align(features, roi, 1, 0.25, 2, False).item() == pytest.approx(2 + 10 * 3)
    # aligned: cell i has its value at i + .5, so everything is read half a cell lower.
    assert roi_ops.roi_align(features, roi, 1, 0.25, 2, True).item() == pytest.approx(1.5 + 10 * 2.5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("place", "wanted"), [(-1.25, 0), (-1, 2), (-0.5, 2), (5, 7), (5.5, 7), (6, 7), (6.25, 0)]
)
def test_up_to_one_cell_outside_the_border_counts(place, wanted, aligned):
    """A map of 6 columns from 2 to 7, read at one point."""
    features = torch.arange(2.0, 8).expand(1, 1, 6, 6)
    x = place + 0.5 * aligned
    roi = torch.tensor([[0, x - 1, 2.0, x + 1, 4]])
    assert roi_ops.roi_align(features, roi, 1, 1.0, 1, aligned).item() == wanted
    assert torchvision.ops.roi_align(features, roi, 1, 1.0, 1, aligned).item() == wanted


# -- pyramid -------------------------------------------------------------------------------------------


@given(seeds)
def test_levels_are_torchvisions(seed):
    """Sides within a few units in the last place of the turning points, and any others."""
    generator = torch.Generator().manual_seed(seed)
    near = torch.tensor([112.0, 224, 448]).view(torch.int32)[:, None]
    sides = (near + torch.randint(-40, 40, (3, 50), generator=generator)).view(torch.float32).flatten()
    near_boxes = torch.stack([sides * 0, sides * 0, sides, sides.round()], dim=1)
    corner, size = torch.rand(2, 50, 2, generator=generator) * 700
    boxes = torch.cat([near_boxes, torch.cat([corner, corner + size], dim=1)])
    theirs = LevelMapper(2, 5)([boxes])
    assert torch.equal(roi_ops.assign_levels(boxes, 4, 224.0, ("outside", 1e-6)), theirs)


def test_an_empty_roi_reads_the_finest_level():
    point = torch.tensor([[5.0, 5, 5, 5]])
    for epsilon in (("outside", 1e-6), ("inside", 1e-6)):
        assert roi_ops.assign_levels(point, 4, 224.0, epsilon).tolist() == [0]


def pyramid(seed: int, channels: int = 3, pictures: int = 2) -> list[torch.Tensor]:
    """P2 to P5 of pictures of 160 x 224 px."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pictures, channels, 160 // s, 224 // s, generator=generator) for s in (4, 8, 16, 32)]


@given(seeds, st.integers(0, 12), st.sampled_from([0, 2]), st.sampled_from([7, 14]), st.booleans())
def test_pyramid_roi_align_is_torchvisions(seed, count, sampling_ratio, output_size, by_level):
    generator = torch.Generator().manual_seed(seed)
    features = pyramid(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 100])
    size = 600 ** torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, torch.minimum(corner + size, torch.tensor([224.0, 160]))], dim=1)
    batch = torch.randint(2, (count,), generator=generator)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size, sampling_ratio, canonical_scale=56)
    named = {str(i): f for i, f in enumerate(features)}
    theirs = pool(named, [boxes[batch == i] for i in range(2)], [(160, 224)] * 2)
    levels = roi_ops.assign_levels(boxes, 4, 56.0, ("outside", 1e-6))
    lift = roi_ops.pool_by_level(roi_ops.roi_align) if by_level else roi_ops.pyramid_roi_align
    ours = lift(features, boxes, batch, levels, (4, 8, 16, 32), output_size, sampling_ratio, False)
    ours = torch.cat([ours[batch == i] for i in range(2)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_pyramid_gradient_reaches_every_level():
    features = [f.requires_grad_() for f in pyramid(0)]
    others = [f.detach().clone().requires_grad_() for f in features]
    boxes = torch.tensor([[3.0, 4, 20, 30], [0, 0, 60, 55], [10, 10, 120, 130], [0, 0, 224, 160]])
    batch, levels = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 3])
    rest = (boxes, batch, levels, (4, 8, 16, 32), 7, 2, False)
    ours = roi_ops.pyramid_roi_align(features, *rest)
    theirs = roi_ops.pool_by_level(torchvision.ops.roi_align)(others, *rest)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for mine, reference in zip(features, others, strict=True):
        assert bool(mine.grad.any())
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=2e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_half_precision_features_keep_their_dtype(sampling_ratio):
    features = [f.to(torch.bfloat16) for f in pyramid(1)]
    boxes = torch.tensor([[3.0, 4, 50, 90], [0, 0, 224, 160]])
    rest = (boxes, torch.tensor([0, 1]), torch.tensor([1, 3]), (4, 8, 16, 32), 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # torchvision's operator has no bfloat16 of its own
        crops = roi_ops.pyramid_roi_align(features, *rest, sampling_ratio, False)
    exact = roi_ops.pyramid_roi_align([f.float() for f in features], *rest, sampling_ratio, False)
    assert crops.dtype == torch.bfloat16
    # bfloat16 has 8 bits: values up to 3 are known to 2**-7.
    torch.testing.assert_close(crops.float(), exact, rtol=2**-6, atol=2**-6)


def test_a_roi_that_asks_for_too_many_points_keeps_its_weight():
    """Where the number of points is fixed beforehand, a longer RoI takes fewer, not a part of them."""
    index, weight = axis(torch.tensor([0.0]), torch.tensor([70.0]), 7, 0, False, torch.tensor(80), most=4)
    assert index.shape == weight.shape == (1, 7, 8)
    torch.testing.assert_close(weight.sum(dim=2), torch.ones(1, 7))
