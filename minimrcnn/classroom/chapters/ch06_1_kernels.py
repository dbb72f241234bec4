"""Chapter 6, first part: what a kernel is made of, and RoIAlign as weighted sums of rows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from minimrcnn.classroom import inputs
from minimrcnn.classroom.chapters.reading_maps import axis_weights
from minimrcnn.classroom.exercise import Exercise, planted
from minimrcnn.roi_ops import sampling

# ---------------------------------------------------------------- block_offsets


def _offset_inputs(g):
    yield 2, 4, 10
    yield 0, 4, 10
    yield 1, 16, 20
    yield 1, 8, 16  # the last element of the block is the last number
    yield 3, 4, 10  # nothing of this block exists
    yield 0, 16, 5


def _offsets_like(program, block, count, *, begins="block", masked="offset", closed=False):
    place = torch.arange(block)
    offsets = place + {"block": program * block, "program": program, "zero": 0}[begins]
    compared = {"offset": offsets, "place": place, "never": offsets - 10**6}[masked]
    return offsets, compared <= count if closed else compared < count


def _offsets_loop(program, block, count):
    offsets = list(range(program * block, (program + 1) * block))
    return offsets, [offset in range(count) for offset in offsets]


BLOCK_OFFSETS = Exercise(
    name="block_offsets",
    chapter=6,
    difficulty=1,
    minutes=5,
    stub='''
def block_offsets(program, block, count):
    """Which numbers of a vector one program of a kernel handles, and which of them exist.

    program: the program's number, from 0. block: numbers a program. count: numbers in the vector.
    Returns (offsets, mask): offsets (block,) int64, each program's following those of the one before;
    mask (block,) bool, True where the offset lies inside the vector.
    """
'''.strip(),
    reference=_offsets_like,
    inputs=_offset_inputs,
    others=(_offsets_loop,),
    mistakes=(
        planted("every program handles the first block: program is ignored", _offsets_like, begins="zero"),
        planted("program p begins at p * block, not at p", _offsets_like, begins="program"),
        planted("the mask is always True: offsets from count on do not exist", _offsets_like, masked="never"),
        planted("the mask asks about the place in the block, not the offset", _offsets_like, masked="place"),
        planted(
            "the last number has the offset count - 1: the mask is <, not <=", _offsets_like, closed=True
        ),
    ),
)

# ---------------------------------------------------------------- axis_weights


def _axis_inputs(g):
    yield inputs.uniform(g, 0, 3, 4), inputs.uniform(g, 2, 8, 4), 3, 2, 11
    yield inputs.uniform(g, 1, 4, 3), inputs.uniform(g, 1, 3, 3), 7, 3, 8
    yield (
        torch.tensor([-0.6, -3.2, 6.3, 14.0]),
        torch.tensor([4.1, 14.3, 3.9, 5.0]),
        4,
        2,
        9,
    )  # over the borders
    yield torch.tensor([2.4]), torch.tensor([5.3]), 2, 1, 9
    yield torch.zeros(0), torch.zeros(0), 2, 2, 5


def _axis_reference(start, length, bins, points, size):
    """The package's taps of an axis, written into a table."""
    step = length / bins
    where = sampling.sample_points(start, step, bins, points, points)
    index, weight = sampling.neighbours(*where, torch.tensor(float(size)))  # (R, bins, K)
    table = torch.zeros(len(start), bins, size)
    return table.scatter_add_(2, index.long(), weight.expand(index.shape))


def axis_like(start, length, bins, points, size, *, place=0.5, mean=True, one=False, **how):
    """The right answer, and with a switch turned a wrong one."""
    points = 1 if one else points
    share = (np.arange(bins)[:, None] + (np.arange(points) + place) / points).ravel() / bins
    tables = [
        axis_weights(low + share * long, size, **how).reshape(bins, points, size).sum(axis=1)
        for low, long in zip(start.tolist(), length.tolist(), strict=True)
    ]
    table = np.array(tables).reshape(-1, bins, size)
    return torch.from_numpy(table / points if mean else table)


def _axis_loop(start, length, bins, points, size):
    table = torch.zeros(len(start), bins, size)
    for r in range(len(start)):
        for i in range(bins):
            for p in range(points):
                where = float(start[r]) + (i + (p + 0.5) / points) * float(length[r]) / bins
                if where < -1 or where > size:
                    continue
                where = min(max(where, 0), size - 1)
                for cell in (int(where), int(where) + 1):
                    if cell < size:
                        table[r, i, cell] += (1 - abs(where - cell)) / points
    return table


AXIS_WEIGHTS = Exercise(
    name="axis_weights",
    chapter=6,
    difficulty=3,
    minutes=20,
    stub='''
def axis_weights(start, length, bins, points, size):
    """How much each bin of a RoI takes of each cell, along one axis: the table A of RoIAlign.

    start, length: (R,) float32, where each RoI begins and how long it is, in cells; cell i has its value at
    coordinate i. bins: of each RoI. points: of each bin, at the middles of as many equal pieces of the bin.
    size: cells along the axis.
    A point between two cells takes a share of each, 1 - its distance. A point up to one cell outside, from -1
    to size, is moved to the border first, 0 or size - 1; one farther out takes nothing. A bin is the mean
    of its points.
    Returns (R, bins, size) float32; R may be 0.
    """
'''.strip(),
    reference=_axis_reference,
    inputs=_axis_inputs,
    others=(axis_like, _axis_loop),
    mistakes=(
        planted("a bin is the sum of its points: it is their mean", axis_like, mean=False),
        planted("points is ignored: one point in the middle of each bin", axis_like, one=True),
        planted("the points lie at the beginning of their pieces, not in the middle", axis_like, place=0.0),
        planted("a point takes its nearest cell alone: it has two neighbours", axis_like, reading="nearest"),
        planted("the two neighbours' shares are swapped", axis_like, reading="crossed"),
        planted("a point more than one cell outside takes nothing", axis_like, outside="border"),
        planted(
            "a point up to one cell outside is moved to the border before it is shared out",
            axis_like,
            outside="fades",
        ),
    ),
)

# ---------------------------------------------------------------- weighted_rows


def _rows_inputs(g):
    for count, channels, bags, taps in ((7, 5, 4, 3), (6, 33, 3, 2), (9, 8, 2, 5), (3, 1, 2, 1)):
        index = torch.randint(count, (bags, taps), generator=g)
        yield inputs.signed(g, count, channels), index, inputs.signed(g, bags, taps)


def _rows_reference(rows, index, weight):
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)


def _rows_like(
    rows, index, weight, *, weighted=True, taps=None, mean=False, length=None, lost=False, wrong_bag=False
):
    channels = rows.shape[1]
    weight = weight if weighted else torch.ones_like(weight)
    weight = weight[:1].expand_as(weight) if wrong_bag else weight
    start = index * (channels if length is None else length)
    flat = (start[..., None] + torch.arange(channels)).clamp(max=rows.numel() - 1)  # (bags, taps, channels)
    values = weight[..., None] * rows.flatten()[flat]
    total = values[:, :taps].sum(dim=1) / (index.shape[1] if mean else 1)
    if lost:
        total[:, 1 << (channels.bit_length() - 1) :] = 0  # beyond the largest power of two that fits
    return total


def _rows_loop(rows, index, weight):
    out = torch.zeros(len(index), rows.shape[1])
    for b in range(len(index)):
        for row, w in zip(index[b].tolist(), weight[b].tolist(), strict=True):
            out[b] += w * rows[row]
    return out


WEIGHTED_ROWS = Exercise(
    name="weighted_rows",
    chapter=6,
    difficulty=4,
    minutes=35,
    stub='''
def weighted_rows(rows, index, weight):
    """Weighted sums of rows of a table: out[b] = sum over k of weight[b, k] * rows[index[b, k]].

    The core of RoIAlign: rows are the cells of a map in channels last, b counts bins, k the cells of a bin.
    Write it as a Triton kernel: one program for each b.
    rows: (N, C) float32; C need not be a power of two. index: (B, K) int64. weight: (B, K) float32.
    All are contiguous and on the CPU; B, K and C are at least 1.
    Returns (B, C) float32, on any device.
    """
'''.strip(),
    reference=_rows_reference,
    inputs=_rows_inputs,
    others=(_rows_like, _rows_loop),
    mistakes=(
        planted("the weights are ignored", _rows_like, weighted=False),
        planted("only the first row of each sum is added", _rows_like, taps=1),
        planted("row n of the table begins at n * C, not at n", _rows_like, length=1),
        planted("the last channels stay 0: the block is smaller than C", _rows_like, lost=True),
        planted("every program reads the weights of the first", _rows_like, wrong_bag=True),
        planted(
            "the sum is divided by K: the weights already say what each row counts", _rows_like, mean=True
        ),
    ),
)

EXERCISES = (BLOCK_OFFSETS, AXIS_WEIGHTS, WEIGHTED_ROWS)
