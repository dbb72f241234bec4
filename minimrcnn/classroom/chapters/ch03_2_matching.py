"""Chapter 3, second part: anchors laid out on a grid, matched to the ground truth, and sampled."""

from __future__ import annotations

import math

import torch

from minimrcnn import anchors as anchor_ops
from minimrcnn import matching
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- grid_anchors


def _grid_inputs(g):
    yield 2, 3, 16, 32.0, (0.5, 1.0, 2.0)
    yield 4, 1, 8, 20.0, (1.0, 3.0)
    yield 3, 5, 4, 64.0, (0.4,)


def _grid_reference(height, width, stride, size, ratios):
    cell = anchor_ops.cell_anchors(size, ratios, "exact", stride)  # (A, 4)
    y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + cell).reshape(-1, 4)


def _grid_loop(
    height,
    width,
    stride,
    size,
    ratios,
    *,
    turned=False,
    order="HWA",
    root="square root",
    middle=0.5,
    half=False,
    swapped=False,
    step=True,
):
    rows = {}
    for i in range(height):
        for j in range(width):
            for a, ratio in enumerate(ratios):
                w, h = {
                    "square root": (size / math.sqrt(ratio), size * math.sqrt(ratio)),
                    "missing": (size / ratio, size * ratio),
                    "width is size": (size, size * ratio),
                    "height is size": (size / ratio, size),
                }[root]
                if turned:
                    w, h = h, w
                x, y = ((k + 0.5 * half) * (stride if step else 1) for k in (j, i))
                if swapped:
                    x, y = y, x
                key = {"HWA": (i, j, a), "WHA": (j, i, a), "AHW": (a, i, j)}[order]
                left, top = x - middle * w, y - middle * h
                rows[key] = [left, top, left + w, top + h]
    return [rows[key] for key in sorted(rows)]


def _grid_broadcast(height, width, stride, size, ratios):
    h = size * torch.tensor(ratios, dtype=torch.float64).sqrt()
    w = size * size / h
    x = (stride * torch.arange(width, dtype=torch.float64))[None, :, None].expand(height, -1, len(h))
    y = (stride * torch.arange(height, dtype=torch.float64))[:, None, None].expand(-1, width, len(h))
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).reshape(-1, 4)


SAME_AREA = "all anchors of a cell must have the same area, size * size"

GRID_ANCHORS = Exercise(
    name="grid_anchors",
    chapter=3,
    difficulty=2,
    minutes=20,
    stub='''
def grid_anchors(height, width, stride, size, ratios):
    """The anchors of one level of the pyramid.

    height, width: cells of the feature map. stride: pixels between two cells. size: side in pixels of the
    square anchor; all A anchors of a cell have its area. ratios: height / width of each, A numbers.
    The anchors of the cell in row i and column j lie around the point x = j * stride, y = i * stride.
    Returns (height * width * A, 4) float32, xyxy in pixels, not rounded: the first A rows are the anchors
    of the first cell, then come those of the cell to its right, and so on, row by row.
    """
'''.strip(),
    reference=_grid_reference,
    inputs=_grid_inputs,
    others=(_grid_loop, _grid_broadcast),
    mistakes=(
        planted("a ratio is height / width, not width / height", _grid_loop, turned=True),
        planted(
            "the rows are in the wrong order: yours go down the columns, they must go along the rows",
            _grid_loop,
            order="WHA",
        ),
        planted(
            "the rows are in the wrong order: all anchors of one cell come together", _grid_loop, order="AHW"
        ),
        planted("x and y are swapped: x grows with the column, y with the row", _grid_loop, swapped=True),
        planted(
            "the square root is missing: width size / sqrt(ratio), height size * sqrt(ratio)",
            _grid_loop,
            root="missing",
        ),
        planted(SAME_AREA, _grid_loop, root="width is size"),
        planted(SAME_AREA, _grid_loop, root="height is size"),
        planted(
            "the point (j * stride, i * stride) is the corner of your anchors: it must be their centre",
            _grid_loop,
            middle=0.0,
        ),
        planted(
            "the anchors lie half a stride too far: around (j * stride, i * stride)", _grid_loop, half=True
        ),
        planted("the stride is ignored: cells are stride pixels apart", _grid_loop, step=False),
    ),
)

# ---------------------------------------------------------------- match


def _match_inputs(g):
    overlap = inputs.uniform(g, 0, 1, 3, 12)
    yield overlap, 0.7, 0.3, False
    own = torch.tensor([[0.6, 0.1, 0.4, 0.0], [0.1, 0.5, 0.1, 0.2]])  # each best is low, and has its own best
    yield own, 0.7, 0.3, False
    yield own, 0.7, 0.3, True
    # One thing at a time: who makes two mistakes here is told the first.
    claimed = torch.tensor([[0.1, 0.6, 0.2, 0.65], [0.05, 0.5, 0.1, 0.2]])  # row 1's best goes to row 0
    yield claimed, 0.7, 0.3, True
    tied = torch.tensor([[0.1, 0.4, 0.4, 0.05], [0.35, 0.0, 0.1, 0.2]])
    yield tied, 0.7, 0.3, True
    untouched = torch.tensor([[0.1, 0.6, 0.2, 0.05], [0.0, 0.0, 0.0, 0.0]])
    yield untouched, 0.7, 0.3, True
    yield overlap, 0.7, 0.3, True
    edges = torch.tensor([[0.75, 0.25, 0.5, 0.0, 0.125, 0.0], [0.0, 0.125, 0.5, 0.0, 0.25, 0.0]])
    yield edges, 0.75, 0.25, False  # exactly at the thresholds
    low = torch.tensor(
        [
            [0.1, 0.2, 0.2, 0.2, 0.05, 0.0],  # no match: its best, three times .2, are kept
            [0.6, 0.1, 0.1, 0.9, 0.0, 0.0],  # candidate 3 has a larger IoU here
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # nothing touches it: nothing is kept for it
            [0.0, 0.0, 0.0, 0.0, 0.01, 0.0],  # its best goes to row 0, where that candidate's IoU is larger
        ]
    )
    yield low, 0.7, 0.3, True
    yield low, 0.5, 0.5, True
    yield low, 0.7, 0.3, False


def _match_like(
    overlap, high, low, keep_best, *,
    keeps="if asked", closed=True, names=(-1, -2), touched=True, goes="own best", ties=True, gap=True, axis=0,
    low_closed=False,
):  # fmt: skip
    best, index = overlap.max(dim=axis)
    below, between = names
    is_below = best <= low if low_closed else best < low
    matched = torch.where(is_below, below, between if gap else below)
    matched = torch.where(best >= high if closed else best > high, index, matched)
    if {"if asked": keep_best, "always": True, "never": False}[keeps] and axis == 0:
        top = overlap.max(dim=1, keepdim=True).values  # (G, 1)
        wins = overlap == top
        if not ties:
            wins = torch.zeros_like(wins).scatter(1, overlap.argmax(dim=1, keepdim=True), True)
        wins = wins & (top > 0) if touched else wins
        for row, column in wins.nonzero().tolist():
            matched[column] = index[column] if goes == "own best" else row
    return matched


def _match_loop(overlap, high, low, keep_best):
    matched = []
    for column in overlap.T.tolist():
        best = max(range(len(column)), key=lambda row: column[row])
        kept = keep_best and any(
            value == float(row.max()) > 0 for value, row in zip(column, overlap, strict=True)
        )
        if column[best] >= high or kept:
            matched.append(best)
        else:
            matched.append(-1 if column[best] < low else -2)
    return matched


MATCH = Exercise(
    name="match",
    chapter=3,
    difficulty=3,
    minutes=25,
    part="match",
    stub='''
def match(overlap, high, low, keep_best):
    """Assign each of N candidates (anchors or proposals) to one of G ground truth boxes by IoU.

    overlap: (G, N) float32, IoU of ground truth and candidates; G is at least 1.
    A candidate goes to the ground truth with which its IoU is largest: if that IoU is at least `high` it is
    matched; below `low` it is background, -1; in between it takes no part, -2.
    keep_best: if True, the candidates with the largest IoU for some ground truth, ties included, are
    matched too, however low it is, unless it is 0. Such a candidate also goes to the ground truth with
    which its own IoU is largest (as in torchvision), which may be another one.
    Returns (N,) int64: the row of the ground truth, -1 or -2.
    """
'''.strip(),
    reference=matching.match,
    inputs=_match_inputs,
    others=(_match_loop, _match_like),
    mistakes=(
        planted("keep_best is ignored", _match_like, keeps="never"),
        planted(
            "keep_best is ignored: the best candidates are kept where it is False too",
            _match_like,
            keeps="always",
        ),
        planted("an IoU of exactly `high` is a match", _match_like, closed=False),
        planted("an IoU of exactly `low` is not below it", _match_like, low_closed=True),
        planted("-1 and -2 are swapped: -1 is background, -2 takes no part", _match_like, names=(-2, -1)),
        planted(
            "from `low` to `high` a candidate takes no part, -2; yours are background", _match_like, gap=False
        ),
        planted(
            "a ground truth that no candidate touches (IoU 0 everywhere) keeps none",
            _match_like,
            touched=False,
        ),
        planted(
            "a candidate kept by keep_best goes to the ground truth with which its own IoU is largest",
            _match_like,
            goes="the keeper",
        ),
        planted(
            "with keep_best all candidates that tie for a ground truth's best are kept, not the first alone",
            _match_like,
            ties=False,
        ),
        planted(
            "takes the best candidate of each ground truth: take the best ground truth of each candidate",
            _match_like,
            axis=1,
        ),
    ),
)

# ---------------------------------------------------------------- sample


def _sample_inputs(g):
    matched = torch.tensor([0, -1, 2, -2, -1, 1, 0, -1, -2, 3, -1, -1, 0, -1, 2, -1])
    random = torch.rand(len(matched), generator=g)
    yield matched, random, 8, 0.5
    yield matched, random, 8, 0.25
    yield matched, random, 40, 0.5  # all there are
    yield torch.where(matched == 2, 2, matched.clamp(max=-1)), random, 8, 0.5  # two positives: six negatives
    yield matched.clamp(min=0), random, 7, 0.5  # no negative: 3, not 7
    yield torch.full((6,), -2), torch.rand(6, generator=g), 4, 0.5


def _sample_like(
    matched, random, number, positive_fraction, *,
    largest=True, ordered=True, between=False, fills=True, cap=True, first=0, forgets=False, rows=True,
):  # fmt: skip
    order = random.argsort(descending=largest) if ordered else torch.arange(len(matched))
    most = int(number * positive_fraction)
    is_negative = matched < 0 if between else matched == -1
    if first:
        is_negative = is_negative | (matched == 0)
    positives = order[(matched >= first + forgets)[order]][: most if cap else number]
    negatives = order[is_negative[order]][: number - (len(positives) if fills else most)]
    return (positives, negatives) if rows else (matched[positives], negatives)


def _sample_reference(matched, random, number, positive_fraction):
    chosen = matching.sample(matched[None], random[None], number, positive_fraction)
    rows, positive, valid = chosen.index[0], chosen.positive[0], chosen.valid[0]
    return rows[positive], rows[valid & ~positive]


def _sample_lists(matched, random, number, positive_fraction):
    drawn = sorted(zip(random.tolist(), range(len(matched)), matched.tolist(), strict=True), reverse=True)
    positives = [row for _, row, truth in drawn if truth >= 0][: int(number * positive_fraction)]
    negatives = [row for _, row, truth in drawn if truth == -1][: number - len(positives)]
    return sorted(positives), sorted(negatives)


SAMPLE = Exercise(
    name="sample",
    chapter=3,
    difficulty=3,
    minutes=20,
    part="sample",
    stub='''
def sample(matched, random, number, positive_fraction):
    """Choose the candidates on which the loss is computed.

    matched: (N,) int64 from match. random: (N,) float32 in [0, 1): of the candidates that could be taken,
    those with the largest random numbers are.
    At most int(number * positive_fraction) positives (matched >= 0) are taken; negatives (matched == -1)
    fill up to `number`. Where positives are few, more negatives take their place; where negatives
    are few, fewer are taken in all.
    Returns two tensors of int64 rows of `matched`, in any order: the positives, the negatives.
    """
'''.strip(),
    reference=_sample_reference,
    inputs=_sample_inputs,
    canonical=lambda pair: tuple(rows.sort().values for rows in pair),
    others=(_sample_like, _sample_lists),
    mistakes=(
        planted(
            "`random` is ignored, the first candidates are taken: take those with the largest random numbers",
            _sample_like,
            ordered=False,
        ),
        planted("takes the smallest random numbers: take the largest", _sample_like, largest=False),
        planted("samples candidates of -2, which take no part, as negatives", _sample_like, between=True),
        planted("where positives are few, more negatives must take their place", _sample_like, fills=False),
        planted("takes more positives than int(number * positive_fraction)", _sample_like, cap=False),
        planted(
            "the candidates of row 0 of the ground truth are forgotten: a match is >= 0, not > 0",
            _sample_like,
            forgets=True,
        ),
        planted("row 0 of the ground truth is taken for background: a match is >= 0", _sample_like, first=1),
        planted(
            "gives the rows of the ground truth: give the rows of the candidates", _sample_like, rows=False
        ),
    ),
)

EXERCISES = (GRID_ANCHORS, MATCH, SAMPLE)
