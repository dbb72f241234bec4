"""Chapter 9: what a loss is divided by, and what each term pulls on."""

from __future__ import annotations

import torch

from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- rank_loss


def _rank_inputs(g):
    yield torch.tensor([6.0, 2.0]), torch.tensor([3.0, 1.0])
    yield 5 * torch.rand(4, generator=g), torch.tensor([16.0, 1.0, 7.0, 3.0])
    yield 3 * torch.rand(3, generator=g), torch.tensor([2.0, 9.0, 4.0])
    yield torch.tensor([4.0, 0.0, 1.5]), torch.tensor([5.0, 0.0, 2.0])  # one process has no row
    yield torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0])
    yield torch.tensor([3.0]), torch.tensor([4.0])


def _rank_like(sums, counts, *, by="share", common=False, equal=False):
    world, total = len(sums), counts.sum()
    divisor = {"share": total / world, "own": counts, "total": total, "world": torch.tensor(float(world))}[by]
    loss = sums / torch.as_tensor(divisor).clamp(min=1e-6)
    if equal:
        loss = (loss.sum() / world).expand(world).clone()
    return loss * counts / (total / world).clamp(min=1e-6) if common else loss


def _rank_loop(sums, counts):
    total = sum(counts.tolist())
    return [len(sums) * s / total if total else 0.0 for s in sums.tolist()]


RANK_LOSS = Exercise(
    name="rank_loss",
    chapter=9,
    difficulty=3,
    minutes=15,
    stub='''
def rank_loss(sums, counts):
    """What each process must call its loss, so that many processes train as one with the whole batch would.

    sums: (W,) float32, the sum of the row losses on each of W processes. counts: (W,) float32, how many rows
    each has; a process may have none, and then its sum is 0.
    One process alone would take sum of all sums / sum of all counts. DistributedDataParallel gives every
    process the mean of the W gradients. Returns (W,) float32, all 0 where nobody has a row.
    """
'''.strip(),
    reference=_rank_like,
    inputs=_rank_inputs,
    others=(_rank_loop,),
    mistakes=(
        planted(
            "each process divides by its own count: a row then weighs more where there are few",
            _rank_like,
            by="own",
        ),
        planted(
            "W times too small: the gradients are averaged over the processes afterwards",
            _rank_like,
            by="total",
        ),
        planted("the counts are ignored", _rank_like, by="world"),
        planted(
            "all processes get the same number: each has a gradient for its own rows only",
            _rank_like,
            equal=True,
        ),
        planted(
            "weighted by its count once more: the sums have grown with it already", _rank_like, common=True
        ),
    ),
)

# ---------------------------------------------------------------- pulls


def _pulls_inputs(g):
    yield (inputs.signed(g, 5, 40),)
    yield (inputs.signed(g, 3, 7) + 0.5,)
    yield (torch.tensor([[3.0, 0.0], [0.0, 1.0]]),)
    yield (torch.tensor([[2.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),)  # one against, one silent
    yield (torch.zeros(3, 4),)


def _pulls_like(gradients, *, how="projection", size=False):
    total = gradients.sum(dim=0)  # (P,)
    along = gradients @ total  # (T,)
    norms, length = gradients.norm(dim=1), total.norm()
    if how == "norms":
        return norms / norms.sum().clamp(min=1e-12)
    if how == "squares":
        return norms**2 / (norms**2).sum().clamp(min=1e-12)
    if how == "cosine":
        return along / (norms * length).clamp(min=1e-12)
    if how == "length":
        return along / length.clamp(min=1e-12)
    if how == "raw":
        return along
    shares = along / (length**2).clamp(min=1e-12)
    return shares.abs() if size else shares


def _pulls_loop(gradients):
    rows = gradients.tolist()
    total = [sum(column) for column in zip(*rows, strict=True)]
    square = sum(t * t for t in total)
    return [sum(g * t for g, t in zip(row, total, strict=True)) / square if square else 0.0 for row in rows]


PULLS = Exercise(
    name="pulls",
    chapter=9,
    difficulty=3,
    minutes=15,
    stub='''
def pulls(gradients):
    """The share of each term in the common step: what it contributes in the direction of the whole gradient.

    gradients: (T, P) float32, a row of P numbers for each of T terms; their sum is the gradient of L.
    The share of a term is its gradient's component along that sum, in units of the sum's own length.
    Returns (T,) float32: they add up to 1; a term that pulls against the others has a negative share. All 0
    where the sum is 0.
    """
'''.strip(),
    reference=_pulls_like,
    inputs=_pulls_inputs,
    others=(_pulls_loop,),
    mistakes=(
        planted(
            "shares of the lengths: that ignores in which direction a term pulls", _pulls_like, how="norms"
        ),
        planted(
            "shares of the squared lengths: that ignores in which direction a term pulls",
            _pulls_like,
            how="squares",
        ),
        planted("gives cosines: a long gradient counts more than a short one", _pulls_like, how="cosine"),
        planted(
            "divide by the squared length of the sum: the shares must add up to 1", _pulls_like, how="length"
        ),
        planted("not divided at all: the shares must add up to 1", _pulls_like, how="raw"),
        planted("the sign is lost: a term can pull against the others", _pulls_like, size=True),
    ),
)

EXERCISES = (RANK_LOSS, PULLS)
