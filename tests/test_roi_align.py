"""RoIAlign against torchvision's operator, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign

from minimrcnn import roi_ops
from minimrcnn.lifting import pool_by_level
from minimrcnn.roi_ops import sampling
from minimrcnn.roi_ops.sampling import axis
from tests.roi_problems import gradient, laid_out, sampled_problems, seeds


@given(sampled_problems(), st.booleans())
def test_roi_align_is_torchvisions_forward_and_backward(problem, aligned):
    features, rois, settings = problem
    ours, our_gradient = gradient(roi_ops.roi_align, features, rois, **settings, aligned=aligned)
    theirs, their_gradient = gradient(torchvision.ops.roi_align, features, rois, **settings, aligned=aligned)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=2e-5)


@given(sampled_problems(), st.booleans(), st.sampled_from(["average", "max"]))
def test_the_loop_is_the_same_forward_and_backward(problem, aligned, reduce):
    features, rois, settings = problem
    settings = {**settings, "aligned": aligned, "reduce": reduce}
    ours, our_gradient = gradient(roi_ops.roi_align, features, rois[:3], **settings)
    loop, loop_gradient = gradient(roi_ops.roi_align_loop, features, rois[:3], **settings)
    torch.testing.assert_close(ours, loop, rtol=0, atol=1e-5)
    if reduce == "average" or clear_winner(features, rois[:3], settings):
        torch.testing.assert_close(our_gradient, loop_gradient, rtol=0, atol=2e-5)


def clear_winner(features: torch.Tensor, rois: torch.Tensor, settings: dict) -> bool:
    """Whether no two points of a bin come out equal: of such, a rounding says which gets the gradient."""
    height, width = 2 * [n] if isinstance(n := settings["output_size"], int) else n
    n = settings["sampling_ratio"]
    if n <= 0:
        return False
    finer = {**settings, "output_size": (height * n, width * n), "sampling_ratio": 1, "reduce": "average"}
    points = roi_ops.roi_align(features, rois, **finer).unflatten(2, (height, n)).unflatten(4, (width, n))
    ranked = points.transpose(3, 4).flatten(4).sort(dim=4).values
    return bool((ranked.diff(dim=4) > 1e-5).all())


@pytest.mark.parametrize("implementation", ["auto", "loop", "pytorch", "torchvision"])
@pytest.mark.parametrize("as_list", [False, True])
def test_all_implementations_take_both_forms_of_rois(implementation, as_list):
    features = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[4.0, 4, 30, 20]]), torch.tensor([[0.0, 3, 12, 22], [1, 1, 5, 5]])]
    rois = torch.tensor([[0, 4.0, 4, 30, 20], [1, 0, 3, 12, 22], [1, 1, 1, 5, 5]])
    theirs = torchvision.ops.roi_align(features, rois, (2, 3), 0.25, 2, True)
    ours = roi_ops.roi_align(
        features, boxes if as_list else rois, (2, 3), 0.25, 2, True, implementation=implementation
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_largest_point_by_hand():
    """f(x, y) = x + 10 y: a bin's largest point is its last one, half a step beyond the middle."""
    features = (torch.arange(8.0)[None] + 10 * torch.arange(8.0)[:, None])[None, None]
    roi = torch.tensor([[0, 1.0, 2, 3, 4]])
    crop = roi_ops.roi_align(features, roi, 1, 1.0, 2, False, "max")
    assert crop.item() == pytest.approx(2.5 + 10 * 3.5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("pixels", [40, 400])
def test_many_rois_are_cropped_in_parts(monkeypatch, sampling_ratio, pixels):
    """Where the RoIs do not fit into one chunk, the parts come out in their places."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 40, 50, generator=generator)
    size = pixels ** torch.rand(60, 2, generator=generator)
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([190.0, 150])
    rois = torch.cat([torch.randint(2, (60, 1), generator=generator).float(), corner, corner + size], dim=1)
    rest = rois, 7, 0.25, sampling_ratio, True
    monkeypatch.setattr(sampling, "CHUNK", 1 << 13)
    ours, our_gradient = gradient(roi_ops.roi_align, features, *rest)
    theirs, their_gradient = gradient(torchvision.ops.roi_align, features, *rest)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=2e-5)


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
@pytest.mark.parametrize("reduce", ["average", "max"])
def test_gradient_in_double(sampling_ratio, aligned, reduce):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[0, 1.5, 2.25, 11, 17], [1, -3, 0.5, 6, 9], [1, 5, 5, 5.5, 5.25]], dtype=torch.float64
    )
    assert torch.autograd.gradcheck(
        lambda x: roi_ops.roi_align(x, rois, 2, 0.25, sampling_ratio, aligned, reduce), (features,)
    )


def test_float64_is_computed_in_float64():
    """Against torchvision in float64; a third is where float32 would show."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 9, 9, generator=generator, dtype=torch.float64)
    rois = torch.tensor([[0, 1 / 3, 2 / 3, 7 / 3, 16 / 3]], dtype=torch.float64)
    theirs = torchvision.ops.roi_align(features, rois, 3, 1.0, 3, True)
    ours = roi_ops.roi_align(features, rois, 3, 1.0, 3, True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_half_precision_sums_in_float32(dtype, layout):
    """Crops and gradient are those of float32, rounded once to the features' dtype."""
    generator = torch.Generator().manual_seed(0)
    features = laid_out(torch.randn(2, 5, 12, 16, generator=generator).to(dtype), layout)
    rois = torch.tensor([[0, 3.0, 4, 50, 40], [1, 0, 0, 64, 48], [1, 20, 10, 33, 21]])
    crops, our_gradient = gradient(roi_ops.roi_align, features, rois, 7, 0.25)
    exact = roi_ops.roi_align(features.float(), rois, 7, 0.25)
    assert crops.dtype == our_gradient.dtype == dtype
    torch.testing.assert_close(crops, exact.to(dtype), rtol=0, atol=0)
    weight = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = features.float().requires_grad_()
    (roi_ops.roi_align(wide, rois, 7, 0.25) * weight.float()).sum().backward()
    torch.testing.assert_close(our_gradient, wide.grad.to(dtype), rtol=0, atol=0)


def test_only_the_maps_that_need_a_gradient_get_one():
    features = [f.requires_grad_(i == 1) for i, f in enumerate(pyramid(0))]
    boxes = torch.tensor([[3.0, 4, 20, 30], [0, 0, 60, 55]])
    rest = (boxes, torch.tensor([0, 1]), torch.tensor([0, 1]), (4, 8, 16, 32), 7, 2, False)
    roi_ops.pyramid_roi_align(features, *rest).sum().backward()
    assert [f.grad is not None for f in features] == [False, True, False, False]
    assert bool(features[1].grad.any())


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


@given(seeds, st.sampled_from([("outside", 1e-6), ("inside", 1e-6), ("inside", 1e-8)]))
def test_levels_are_equation_1_with_every_published_epsilon(seed, epsilon):
    """Against Python's float64, away from the turning points, where float32 decides."""
    sides = 900 * torch.rand(200, 2, generator=torch.Generator().manual_seed(seed)) + 1
    boxes = torch.cat([torch.zeros(200, 2), sides], dim=1)
    where, small = epsilon
    found = roi_ops.assign_levels(boxes, 4, 224.0, epsilon).tolist()
    for (width, height), level in zip(sides.tolist(), found, strict=True):
        ratio = math.sqrt(width * height) / 224
        k = 4 + (math.log2(ratio) + small if where == "outside" else math.log2(ratio + small))
        if abs(k - round(k)) > 1e-5:
            assert level == min(max(math.floor(k), 2), 5) - 2


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
    lift = pool_by_level(roi_ops.roi_align) if by_level else roi_ops.pyramid_roi_align
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
    theirs = pool_by_level(torchvision.ops.roi_align)(others, *rest)
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
