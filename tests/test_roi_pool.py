"""RoIPool against torchvision's operator and against its loop."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn import roi_ops
from minimrcnn.roi_ops import pool
from minimrcnn.roi_ops.loops import round_half_away
from tests.roi_problems import gradient, problems, seeds


@given(problems())
def test_roi_pool_is_torchvisions_forward_and_backward(problem):
    features, rois, settings = problem
    ours, our_gradient = gradient(roi_ops.roi_pool, features, rois, **settings)
    theirs, their_gradient = gradient(torchvision.ops.roi_pool, features, rois, **settings)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-5)


@given(seeds, st.sampled_from([1 / 16, 0.3, 1.0]), st.sampled_from([3, 7, (5, 7)]))
def test_roi_pool_at_fractional_corners(seed, scale, output_size):
    """Any corner, any scale, sevenths: the two roundings fall as torchvision's do, to the last bit."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 2, 13, 17, generator=generator)
    corner = (torch.rand(8, 2, generator=generator) * 1.4 - 0.2) * torch.tensor([17.0, 13]) / scale
    size = torch.rand(8, 2, generator=generator) * torch.tensor([17.0, 13]) / scale
    rois = torch.cat([torch.randint(2, (8, 1), generator=generator).float(), corner, corner + size], dim=1)
    theirs = torchvision.ops.roi_pool(features, rois, output_size, scale)
    assert torch.equal(roi_ops.roi_pool(features, rois, output_size, scale), theirs)


@given(problems())
def test_the_loop_is_the_same_forward_and_backward(problem):
    features, rois, settings = problem
    ours, our_gradient = gradient(roi_ops.roi_pool, features, rois[:3], **settings)
    loop, loop_gradient = gradient(roi_ops.roi_pool_loop, features, rois[:3], **settings)
    assert torch.equal(ours, loop)
    torch.testing.assert_close(our_gradient, loop_gradient, rtol=0, atol=1e-5)


def test_the_gradient_goes_to_the_first_of_equal_cells():
    """After a ReLU most cells are 0: torchvision's choice among them, too."""
    features = torch.zeros(1, 1, 4, 6)
    rois = torch.tensor([[0, 0.0, 0, 5, 3]])
    _, ours = gradient(roi_ops.roi_pool, features, rois, 1)
    _, theirs = gradient(torchvision.ops.roi_pool, features, rois, 1)
    assert ours.nonzero().tolist() == theirs.nonzero().tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("x", "cell"),
    [(0.49999997, 0), (0.5, 1), (1.5, 2), (2.5, 3), (-0.5, -1), (-2.5, -3), (-0.4, 0), (7.0, 7)],
)
def test_halves_are_rounded_away_from_zero(x, cell):
    assert pool.round_half_away(torch.tensor([x])).item() == cell
    assert round_half_away(torch.tensor(x).item()) == cell
    # A map of x + 10 cells from -10, so that the cell that a RoI of one point reads is its value.
    features = torch.arange(-10.0, 10).expand(1, 1, 20, 20)
    roi = torch.tensor([[0, x, 0, x, 0]])
    if cell >= 0:
        assert torchvision.ops.roi_pool(features, roi, 1).item() == cell - 10


def test_both_roundings_by_hand():
    """Stride 4, x from 6 to 22 px: cells 1.5 to 5.5, rounded to 2 to 6. 5 cells in 2 bins: 2..4 and 4..6."""
    features = torch.arange(8.0).expand(1, 1, 8, 8)
    roi = torch.tensor([[0, 6.0, 6, 22, 22]])
    assert roi_ops.roi_pool(features, roi, 2, 0.25)[0, 0].tolist() == [[4, 6], [4, 6]]


def test_gradient_in_double():
    features = torch.randperm(40, generator=torch.Generator().manual_seed(0)).double().view(2, 1, 5, 4)
    rois = torch.tensor([[0, 1.5, 2.25, 11, 17], [1, -3, 0, 6, 9], [1, 5, 5, 5, 5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: roi_ops.roi_pool(x, rois, 2, 0.25), (features.requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact(dtype):
    """A maximum rounds nothing."""
    features = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    rois = torch.tensor([[0, 3.0, 4, 30, 35]])
    crops, our_gradient = gradient(roi_ops.roi_pool, features, rois, 3, 0.25)
    assert crops.dtype == our_gradient.dtype == dtype
    assert torch.equal(crops.float(), roi_ops.roi_pool(features.float(), rois, 3, 0.25))


def test_many_rois_are_compared_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 20, 25, generator=generator)
    corner, size = torch.rand(2, 30, 2, generator=generator) * 60
    rois = torch.cat([torch.randint(2, (30, 1), generator=generator).float(), corner, corner + size], dim=1)
    monkeypatch.setattr(pool, "CHUNK", 1 << 10)
    theirs = torchvision.ops.roi_pool(features, rois, 7, 0.25)
    assert torch.equal(roi_ops.roi_pool(features, rois, 7, 0.25), theirs)


def test_no_rois_give_no_crops_and_a_gradient_of_zero():
    crops, our_gradient = gradient(roi_ops.roi_pool, torch.randn(1, 3, 4, 4), torch.zeros(0, 5), 7)
    assert crops.shape == (0, 3, 7, 7)
    assert not bool(our_gradient.any())
