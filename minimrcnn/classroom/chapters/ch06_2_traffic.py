"""Chapter 6, second part: the two ways back, and how much a launch must move."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from minimrcnn.classroom import inputs
from minimrcnn.classroom.chapters.ch06_1_kernels import axis_like
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- scatter_rows


def _scatter_inputs(g):
    for count, channels, bags, taps in ((7, 3, 5, 2), (4, 2, 6, 3)):
        index = torch.stack([torch.randperm(count, generator=g)[:taps] for _ in range(bags)])
        yield inputs.signed(g, bags, channels), index, inputs.signed(g, bags, taps), count
    twice = torch.tensor([[2, 2, 0], [1, 4, 1]])  # a bin whose points share a cell
    yield inputs.signed(g, 2, 4), twice, inputs.signed(g, 2, 3), 6
    yield torch.zeros(0, 3), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), 4


def _scatter_reference(gradient, index, weight, count):
    with torch.enable_grad():
        rows = torch.zeros(count, gradient.shape[1], requires_grad=True)
        sums = (rows[index] * weight[..., None]).sum(dim=1)
        return torch.autograd.grad(sums, rows, gradient)[0]


def _scatter_like(gradient, index, weight, count, *, weighted=True, taps=None, add=True):
    out = np.zeros((count, gradient.shape[1]))
    for g, rows, weights in zip(gradient.tolist(), index.tolist(), weight.tolist(), strict=True):
        for row, w in list(zip(rows, weights, strict=True))[:taps]:
            sent = np.array(g) * (w if weighted else 1)
            out[row] = out[row] + sent if add else sent
    return torch.from_numpy(out)


def _scatter_bag_by_bag(gradient, index, weight, count):
    """What `out[index[b]] += ...` does: of two taps of one sum on the same row, one is lost."""
    out = torch.zeros(count, gradient.shape[1])
    for b in range(len(index)):
        out[index[b]] += weight[b][:, None] * gradient[b]
    return out


def _scatter_matrix(gradient, index, weight, count):
    table = F.one_hot(index, count) * weight[..., None]  # (B, K, count)
    return table.sum(dim=1).T @ gradient


SCATTER_ROWS = Exercise(
    name="scatter_rows",
    chapter=6,
    difficulty=2,
    minutes=15,
    stub='''
def scatter_rows(gradient, index, weight, count):
    """The gradient of weighted_rows in its table: what each row gets back from the sums that read it.

    gradient: (B, C) float32, the gradient of the loss in the sums. index: (B, K) int64 and weight: (B, K)
    float32, as weighted_rows got them; one sum may name a row several times. count: N, rows of the table.
    Returns (N, C) float32; a row that no sum read gets 0. B may be 0.
    """
'''.strip(),
    reference=_scatter_reference,
    inputs=_scatter_inputs,
    others=(_scatter_like, _scatter_matrix),
    mistakes=(
        planted("a row that several sums read keeps only the last: add them up", _scatter_like, add=False),
        planted("a row that one sum names twice gets its gradient once", _scatter_bag_by_bag),
        planted("the weights are ignored", _scatter_like, weighted=False),
        planted("only the first row of each sum gets something back", _scatter_like, taps=1),
    ),
)

# ---------------------------------------------------------------- tile_lists


def _tile_inputs(g):
    for height, width, tile_y, tile_x in ((12, 20, 4, 4), (9, 17, 4, 8)):
        first = torch.randint(6, (6, 2), generator=g)
        last = first + torch.tensor([[0, 3], [2, 0], [1, 5], [0, 0], [3, 1], [1, 8]])
        yield *(torch.stack([first[:, k], last[:, k]], dim=1) for k in (0, 1)), height, width, tile_y, tile_x
    # Over a whole tile with no corner in it; its last cell the first of a tile.
    yield torch.tensor([[0, 8], [2, 4], [4, 6]]), torch.tensor([[0, 11], [3, 8], [9, 10]]), 9, 12, 3, 4
    yield torch.tensor([[0, 1]]), torch.tensor([[5, 6]]), 4, 8, 2, 4  # tiles without a RoI


def _tiles_like(
    rows, columns, height, width, tile_y, tile_x, *, ends=0, corners=False, first=False, by_column=False,
    swapped=False,
):  # fmt: skip
    rows, columns = (columns, rows) if swapped else (rows, columns)
    down, across = -(-height // tile_y), -(-width // tile_x)
    tiles = [(i * tile_y, j * tile_x) for i in range(down) for j in range(across)]
    tiles = sorted(tiles, key=lambda tile: tile[::-1]) if by_column else tiles

    def reaches(span, low, size):
        if first:
            return (span[:, 0] >= low) & (span[:, 0] < low + size)
        if corners:
            return ((span >= low) & (span < low + size)).any(dim=1)
        return (span[:, 0] < low + size) & (span[:, 1] >= low + ends)

    return [
        (reaches(rows, top, tile_y) & reaches(columns, left, tile_x)).nonzero()[:, 0] for top, left in tiles
    ]


def _tiles_loop(rows, columns, height, width, tile_y, tile_x):
    lists = [[] for _ in range(-(-height // tile_y) * -(-width // tile_x))]
    for r, ((top, bottom), (left, right)) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        for i in range(top // tile_y, bottom // tile_y + 1):
            for j in range(left // tile_x, right // tile_x + 1):
                if i * tile_y < height and j * tile_x < width:
                    lists[i * -(-width // tile_x) + j].append(r)
    return lists


TILE_LISTS = Exercise(
    name="tile_lists",
    chapter=6,
    difficulty=3,
    minutes=20,
    stub='''
def tile_lists(rows, columns, height, width, tile_y, tile_x):
    """Which RoIs reach into each tile of a map: what the gather backward looks up.

    rows: (R, 2) int64, the first and the last row of cells that each RoI reads; columns: (R, 2) int64, the
    same along x. Both ends are read, and lie on the map. height, width: of the map, in cells.
    tile_y, tile_x: of a tile, in cells; the last tiles of a map may reach over its border.
    Returns a list with one entry a tile, from left to right, then down: the numbers of the RoIs that read a
    cell of the tile, (n,) int64 in rising order.
    """
'''.strip(),
    reference=_tiles_like,
    inputs=_tile_inputs,
    others=(_tiles_loop,),
    mistakes=(
        planted("the last row and the last column of a RoI are read too", _tiles_like, ends=1),
        planted("a RoI with no corner in the tile can cover it all the same", _tiles_like, corners=True),
        planted("a RoI is listed in the tile of its first cell alone", _tiles_like, first=True),
        planted(
            "the tiles are in the wrong order: from left to right, then down", _tiles_like, by_column=True
        ),
        planted("x and y are swapped", _tiles_like, swapped=True),
    ),
)

# ---------------------------------------------------------------- count_loads


def _load_inputs(g):
    for count, bins, points, height, width in ((4, 3, 2, 9, 13), (3, 7, 2, 16, 8)):
        low, long = inputs.uniform(g, 0, 4, count), inputs.uniform(g, 2, 6, count)
        rows = axis_like(low, long, bins, points, height).float()
        yield rows, axis_like(low + 1.3, 1.2 * long, bins, points, width).float()
    apart = torch.tensor([0.2, 6.2]), torch.tensor([2.0, 2.0])  # two RoIs on a diagonal
    yield axis_like(*apart, 2, 2, 9).float(), axis_like(*apart, 2, 2, 12).float()
    yield rows[:1] * 0, rows[:1]


def _loads_like(rows, columns, *, unique="roi", touched="union"):
    taps = ((rows != 0).sum(dim=(1, 2)) * (columns != 0).sum(dim=(1, 2))).sum()
    y, x = (rows != 0).any(dim=1), (columns != 0).any(dim=1)  # (R, H), (R, W)
    area = y.sum(dim=1) * x.sum(dim=1)
    any_roi = y[:, :, None] & x[:, None, :]
    return (
        taps,
        {"roi": area.sum(), "bin": taps}[unique],
        {
            "union": any_roi.any(dim=0).sum(),
            "apart": y.any(dim=0).sum() * x.any(dim=0).sum(),
            "sum": area.sum(),
        }[touched],
    )


def _loads_loop(rows, columns):
    taps, unique, touched = 0, 0, set()
    for a_y, a_x in zip(rows.tolist(), columns.tolist(), strict=True):
        cells = []
        for bin_y in a_y:
            for bin_x in a_x:
                cells += [(y, x) for y, v in enumerate(bin_y) if v for x, w in enumerate(bin_x) if w]
        taps += len(cells)
        unique += len(set(cells))
        touched |= set(cells)
    return taps, unique, len(touched)


COUNT_LOADS = Exercise(
    name="count_loads",
    chapter=6,
    difficulty=3,
    minutes=20,
    stub='''
def count_loads(rows, columns):
    """How many cells RoIs of one map read, counted in three ways: the numbers behind the roofline.

    rows: (R, P, H) float32, how much each row of bins takes of each row of cells (axis_weights);
    columns: (R, P, W) float32, the same along x. Bin (i, j) of a RoI reads cell (y, x) if rows[i, y] and
    columns[j, x] are both not 0.
    Returns three whole numbers (bins, rois, map): the cells that each bin reads, added up over all bins and
    RoIs; the cells that each RoI reads, each counted once, added up over RoIs; the cells of the map that
    any RoI reads, each counted once.
    """
'''.strip(),
    reference=_loads_like,
    inputs=_load_inputs,
    others=(_loads_loop,),
    mistakes=(
        planted("a RoI's cell is counted once, however many of its bins read it", _loads_like, unique="bin"),
        planted("a cell of the map is counted once, however many RoIs read it", _loads_like, touched="sum"),
        planted(
            "a row that one RoI reads and a column that another reads do not make a cell",
            _loads_like,
            touched="apart",
        ),
    ),
)

EXERCISES = (SCATTER_ROWS, TILE_LISTS, COUNT_LOADS)
