"""Muon against the singular value decomposition, and against torch's optimisers."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimrcnn.engine.muon import SCALE, Muon, orthogonal
from minimrcnn.engine.optimizer import build_optimizer, update
from minimrcnn.recipes import Recipe

RECIPE = Recipe(optimizer="muon", lr=0.01, base_batch=16, weight_decay=0.1, beta2=0.99)


class Network(nn.Module):
    """A convolution, a norm and an output layer under the names that the model has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.cls_score = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cls_score(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


def one_step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int, spoilt: bool = False) -> None:
    optimizer.zero_grad()
    picture = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    loss = network(picture).square().sum() * (math.nan if spoilt else 1.0)
    loss.backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update(optimizer, scaler, 0.01, skip=~loss.detach().isfinite())


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.floats(-6, 6))
def test_the_directions_stay_and_their_lengths_become_alike(seed, rows, columns, power):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) * 10**power
    u, lengths, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    stretched = u.T @ orthogonal([matrix])[0].double() @ v.T  # the result in the basis of the directions
    clear = lengths > lengths[0] * 0.02  # five iterations do not reach what is nearly 0
    diagonal = stretched.diagonal()[clear]
    assert bool(((diagonal > 0.6) & (diagonal < 1.25)).all())
    off = stretched - torch.diag(stretched.diagonal())
    assert float(off.abs().max()) < 1e-3


def test_no_gradient_is_no_direction():
    assert torch.equal(orthogonal([torch.zeros(3, 5)])[0], torch.zeros(3, 5))


def test_matrices_of_one_height_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 9), (4, 30), (9, 4), (7, 7), (4, 9)
    matrices = [torch.randn(*shape, generator=generator) for shape in shapes]
    for matrix, together in zip(matrices, orthogonal(matrices), strict=True):
        torch.testing.assert_close(together, orthogonal([matrix])[0], rtol=1e-4, atol=1e-5)


def muon_of(*weights: nn.Parameter) -> Muon:
    return Muon([{"params": list(weights), "matrices": True, "weight_decay": 0.1}], 0.01, (0.9, 0.99))


def matrix_and_gradients(*shape: int) -> tuple[nn.Parameter, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    first, *gradients = (torch.randn(*shape, generator=generator) for _ in range(4))
    return nn.Parameter(first), gradients


def test_it_is_torchs_muon_on_matrices_of_fixed_length():
    ours, gradients = matrix_and_gradients(24, 40)
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    muon = muon_of(ours)
    reference = torch.optim.Muon(
        [theirs], lr=0.01 * SCALE / 0.2, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        reference.step()
        with torch.no_grad():
            theirs.mul_(start.norm() / theirs.norm())
    moved, wanted = ours.detach() - start, theirs.detach() - start
    # torch multiplies in bfloat16, with 8 bits.
    assert float((moved - wanted).norm() / wanted.norm()) < 0.02


def test_a_matrix_keeps_its_length_and_one_of_zeros_grows():
    kept, gradients = matrix_and_gradients(8, 3)
    zeros, length = nn.Parameter(torch.zeros(8, 3)), kept.norm().item()
    muon = muon_of(kept, zeros)
    for gradient in gradients:
        kept.grad, zeros.grad = gradient, gradient
        muon.step()
    assert kept.norm().item() == pytest.approx(length, rel=1e-5)
    assert zeros.norm().item() > 0.01


def test_everything_else_moves_as_under_adamw():
    ours, theirs = Network(), Network()
    muon = build_optimizer(ours, RECIPE)
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    assert [group["matrices"] for group in muon.param_groups] == [True, False, False]
    for group in muon.param_groups:
        group["weight_decay"] = 0.1
    for step in range(3):
        one_step(ours, muon, step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = mine.grad.clone()
        adam.step()
    for name in ("conv.bias", "norm.weight", "norm.bias", "cls_score.weight", "cls_score.bias"):
        mine, other = ours.get_parameter(name), theirs.get_parameter(name)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours.conv.weight, theirs.conv.weight, atol=1e-3)


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_skipped_step_leaves_no_trace(good_steps):
    skipping, never = Network(), Network()
    a, b = build_optimizer(skipping, RECIPE), build_optimizer(never, RECIPE)
    for step in range(good_steps + 2):
        if step == good_steps:
            one_step(skipping, a, 99, spoilt=True)
        one_step(skipping, a, step)
        one_step(never, b, step)
    for p, q in zip(skipping.parameters(), never.parameters(), strict=True):
        assert torch.equal(p, q)


def test_its_state_goes_through_a_checkpoint():
    first, second = Network(), Network()
    a, b = build_optimizer(first, RECIPE), build_optimizer(second, replace(RECIPE, lr=1.0))
    one_step(first, a, 0)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(deepcopy(a.state_dict()))
    one_step(first, a, 1)
    one_step(second, b, 1)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
