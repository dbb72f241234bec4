"""The loss terms against PyTorch's own and against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn import losses

ONE = torch.tensor(1.0)
seeds = st.integers(0, 2**31 - 1)


@given(seeds, st.sampled_from([1 / 9, 0.5, 1.0]))
def test_smooth_l1_is_pytorchs(seed, beta):
    error = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    wanted = F.smooth_l1_loss(error, error * 0, beta=beta, reduction="none")
    torch.testing.assert_close(losses.smooth_l1(error, beta), wanted)


def test_smooth_l1_by_hand():
    error = torch.tensor([0.0, 0.05, -0.5, 2.0])
    # Below 1/9: .5 * .05 * .05 * 9. Above: .5 - 1/18, 2 - 1/18.
    assert losses.smooth_l1(error, 1 / 9).tolist() == pytest.approx(
        [0, 0.01125, 0.444444, 1.944444], abs=1e-6
    )
    assert losses.smooth_l1(error, 0).tolist() == pytest.approx([0, 0.05, 0.5, 2.0])


def test_objectness_counts_valid_rows_only():
    logits = torch.tensor([[0.0, 2.0, 99.0]])
    positive, valid = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    # -log(1/2) and -log(1 - sigmoid(2)) = log(1 + e^2), over 2.
    wanted = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert losses.objectness_loss(logits, positive, valid, torch.tensor(2.0)).item() == pytest.approx(wanted)


def test_class_loss_is_cross_entropy_of_the_valid_rows():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 4, 0, 2, 3])
    valid = torch.tensor([True, True, True, True, False, False])
    wanted = F.cross_entropy(logits[:4], labels[:4])
    torch.testing.assert_close(losses.class_loss(logits, labels, valid, torch.tensor(4.0)), wanted)


def test_box_loss_ignores_what_is_not_positive_even_nan():
    deltas = torch.zeros(3, 4, requires_grad=True)
    targets = torch.tensor([[1.0, 0, 0, 0], [math.nan] * 4, [-math.inf, 0, 0, 0]])
    loss = losses.box_loss(deltas, targets, torch.tensor([True, False, False]), 1.0, ONE)
    loss.backward()
    assert loss.item() == 0.5
    assert deltas.grad.tolist() == [[-1, 0, 0, 0], [0] * 4, [0] * 4]


def test_mask_loss_sees_the_map_of_the_true_class_alone():
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    targets, labels = torch.ones(2, 4, 4), torch.tensor([2, 1])
    loss = losses.mask_loss(logits, labels, targets, torch.tensor([True, False]), ONE)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    touched = logits.grad.flatten(2).abs().sum(dim=2) > 0
    assert touched.tolist() == [[False, False, True], [False] * 3]


def test_mask_loss_of_soft_targets():
    logits, targets = torch.randn(5, 2, 4, 4), torch.rand(5, 4, 4)
    wanted = F.binary_cross_entropy_with_logits(logits[:, 1], targets)
    valid, labels = torch.ones(5, dtype=torch.bool), torch.ones(5, dtype=torch.int64)
    torch.testing.assert_close(losses.mask_loss(logits, labels, targets, valid, torch.tensor(5.0)), wanted)


def test_mask_loss_without_rois_has_a_gradient():
    logits = torch.zeros(0, 3, 4, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = losses.mask_loss(logits, none, torch.zeros(0, 4, 4), none.bool(), ONE)
    loss.backward()
    assert loss.item() == 0


def test_half_precision_logits_give_float32_losses():
    half = torch.bfloat16
    assert (
        losses.objectness_loss(torch.zeros(1, 2, dtype=half), *[torch.ones(1, 2) > 0] * 2, ONE).dtype
        == torch.float32
    )
    rows = torch.ones(2, dtype=torch.int64)
    assert losses.class_loss(torch.zeros(2, 3, dtype=half), rows, rows > 0, ONE).dtype == torch.float32
    assert (
        losses.box_loss(torch.zeros(2, 4, dtype=half), torch.zeros(2, 4), rows > 0, 1.0, ONE).dtype
        == torch.float32
    )
    masks = torch.zeros(2, 3, 4, 4, dtype=half)
    assert losses.mask_loss(masks, rows, torch.zeros(2, 4, 4), rows > 0, ONE).dtype == torch.float32


def test_share_is_never_zero():
    assert losses.share(torch.tensor(0)).item() == pytest.approx(1e-6)
    assert losses.share(torch.tensor(7)).item() == 7


def test_share_counts_over_all_ranks(monkeypatch):
    """Two ranks with 3 and 5: each divides by 4, so that the mean of the two is the whole over 8."""
    monkeypatch.setattr(losses.dist, "is_available", lambda: True)
    monkeypatch.setattr(losses.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda count: count.add_(5))
    count = torch.tensor(3.0)
    assert losses.share(count).item() == 4
    assert count.item() == 3
