"""Chapter 10, second part: from grids to pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minimrcnn import pasting
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- grow_box


def _grow_inputs(g):
    yield inputs.boxes(g, 8, 60, 100, smallest=5), 28
    yield inputs.boxes(g, 8, 200, 150, smallest=20), 7
    yield inputs.boxes(g, 6, 60, 100) - 30, 14  # some reach beyond the picture: negative corners
    yield inputs.boxes(g, 1, 60, 100)[:0], 28


def _grow_like(
    boxes, size, *, cut=torch.trunc, ratio=None, from_corner=False, exclusive=False, one_pixel=False
):
    scale = (size + 2) / size if ratio is None else ratio(size)
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    low, high = centre - half * scale, centre + half * scale
    if from_corner:
        low, high = boxes[:, :2], boxes[:, :2] + 2 * half * scale
    if one_pixel:
        low, high = boxes[:, :2] - 1, boxes[:, 2:] + 1
    corners = torch.cat([cut(low), cut(high) + (1 if exclusive else 0)], dim=1)
    return corners.to(torch.int64)


def _grow_loop(boxes, size):
    rows = []
    for x1, y1, x2, y2 in boxes.tolist():
        dx, dy = (x2 - x1) / size, (y2 - y1) / size  # one cell on either side
        rows.append([int(x1 - dx), int(y1 - dy), int(x2 + dx), int(y2 + dy)])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


GROW_BOX = Exercise(
    name="grow_box",
    chapter=10,
    difficulty=2,
    minutes=10,
    stub='''
def grow_box(boxes, size):
    """The whole pixels over which torchvision lays a grid with its ring of zeros.

    Make room for one more cell on each side: grow the box around its centre by (size + 2) / size. Then cut
    the four corners to whole numbers, towards 0, as int() does.
    boxes: (N, 4) float32, xyxy in pixels; they may reach beyond the picture. size: cells of the grid, a side.
    Returns (N, 4) int64: first column, first row, last column, last row.
    """
'''.strip(),
    reference=_grow_like,
    inputs=_grow_inputs,
    others=(_grow_loop,),
    mistakes=(
        planted(
            "grown by (size + 1) / size: a ring has a cell on either side",
            _grow_like,
            ratio=lambda size: (size + 1) / size,
        ),
        planted("the box is not grown", _grow_like, ratio=lambda size: 1.0),
        planted("grown by one pixel: it is one cell", _grow_like, one_pixel=True),
        planted(
            "the top left corner stays where it is: grow around the centre", _grow_like, from_corner=True
        ),
        planted("the corners are rounded to the nearest: cut them", _grow_like, cut=torch.round),
        planted("negative corners are cut downwards: int() goes towards 0", _grow_like, cut=torch.floor),
        planted(
            "one pixel is added at the end: the last row and column are wanted", _grow_like, exclusive=True
        ),
    ),
)

# ---------------------------------------------------------------- paste


def _paste_inputs(g):
    grids = inputs.uniform(g, 0, 1, 5, 7, 7)
    boxes = inputs.boxes(g, 5, 40, 60, smallest=9)
    yield grids, boxes, 40, 60, "integer"
    yield grids, boxes, 40, 60, "exact"
    beyond = boxes + torch.tensor(
        [[-14.0, -9, -14, -9], [20, 12, 20, 12], [0, 9, 0, 9], [3, -7, 3, -7], [0] * 4]
    )
    yield grids, beyond, 40, 60, "integer"
    yield grids, beyond, 40, 60, "exact"
    yield inputs.uniform(g, 0, 1, 2, 14, 14), inputs.boxes(g, 2, 30, 25, smallest=8), 30, 25, "integer"
    yield grids[:0], boxes[:0], 40, 60, "integer"


def _hats(place, cells):
    """How much each cell counts at each place: (P, cells), two of them, as bilinear reading wants."""
    return (1 - (place.clamp(0, cells - 1)[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def _paste_like(
    grids, boxes, height, width, how, *,
    swapped=False, ring=True, grown=True, plus=1, always="", squeeze=False, corners=False, binary=False,
):  # fmt: skip
    size, how = grids.shape[-1], always or how
    pictures = grids.new_zeros(len(grids), height, width)
    windows = _grow_like(boxes, size) if grown else boxes.to(torch.int64)
    for i in range(len(grids)):
        grid, sides = F.pad(grids[i], (1, 1, 1, 1), mode="constant"), []
        if not ring:
            grid = F.pad(grids[i][None], (1, 1, 1, 1), mode="replicate")[0]
        for axis, limit in ((1, height), (0, width)):
            pixel = torch.arange(limit)
            if how == "exact":
                low, high = boxes[i, axis], boxes[i, axis + 2]
                inside = (pixel >= int(low) - 1) & (pixel < int(high) + 2)
                if squeeze:
                    low, high = low.clamp(0, limit), high.clamp(0, limit)
                place = (pixel + 0.5 - low) / (high - low).clamp(min=1e-6) * size + 0.5
            else:
                low, high = windows[i, axis], windows[i, axis + 2]
                if squeeze:
                    low, high = low.clamp(0, limit - 1), high.clamp(0, limit - 1)
                inside = (pixel >= low) & (pixel < high + 1)
                length = (high - low + plus).clamp(min=1)
                place = (pixel + 0.5 - low) * (size + 2) / length - 0.5
                if corners:
                    place = (pixel - low) * (size + 1) / (length - 1).clamp(min=1)
            sides.append(_hats(place, size + 2) * inside[:, None])
        if swapped:
            grid = grid.T
        pictures[i] = sides[0] @ grid @ sides[1].T
    return (pictures > 0.5).to(grids.dtype) if binary else pictures


def _paste_loop(grids, boxes, height, width, how):
    pictures = torch.zeros(len(grids), height, width)
    for i, (grid, box) in enumerate(zip(grids, boxes, strict=True)):
        pixels, left, top = pasting.place_grid(grid, box, height, width, how)
        for y in range(pixels.shape[0]):
            pictures[i, top + y, left : left + pixels.shape[1]] = pixels[y]
    return pictures


PASTE = Exercise(
    name="paste",
    chapter=10,
    difficulty=4,
    minutes=40,
    part="paste",
    stub='''
def paste(grids, boxes, height, width, how):
    """Grids of probabilities over their boxes, as whole pictures.

    grids: (N, M, M) float32, 0 to 1. boxes: (N, 4) float32, xyxy in pixels of the picture; they may reach
    beyond it, and what lies outside is cut off. N may be 0.
    how: "integer": a ring of zeros around the grid, M + 2 cells a side, stretched bilinearly over the whole
    pixels that grow_box gives (the last column and row count, so it is x2 - x1 + 1 wide). "exact": the centre
    of each pixel is looked up bilinearly in the box as it is, with zeros around the grid.
    Returns (N, height, width) float32. Only values above one half are compared: the others make no mask.
    """
'''.strip(),
    reference=pasting.paste,
    inputs=_paste_inputs,
    others=(_paste_like, _paste_loop),
    mistakes=(
        planted(
            "x and y are swapped inside of the box: rows of a grid lie along y", _paste_like, swapped=True
        ),
        planted(
            "the ring of zeros is missing: the mask must fall off at its border", _paste_like, ring=False
        ),
        planted(
            'with "integer" the box must be grown by one cell a side before its corners are cut',
            _paste_like,
            grown=False,
        ),
        planted(
            "the grid is stretched over x2 - x1 pixels: the last one counts, so it is one more",
            _paste_like,
            plus=0,
        ),
        planted('`how` is ignored: yours is always "integer"', _paste_like, always="integer"),
        planted('`how` is ignored: yours is always "exact"', _paste_like, always="exact"),
        planted(
            "a box that reaches beyond the picture is squeezed into it: cut off what lies outside",
            _paste_like,
            squeeze=True,
        ),
        planted(
            "corners of the grid lie on the centres of corner pixels: align_corners=False is wanted",
            _paste_like,
            corners=True,
        ),
        planted(
            "gives 0 and 1: probabilities are wanted, the threshold comes later", _paste_like, binary=True
        ),
    ),
    canonical=lambda answer: answer.clamp(min=0.5),
)

# ---------------------------------------------------------------- box_ceiling


def _blobs(g, height, width):
    """A mask with a ragged border: (height, width) float32 of 0 and 1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    far = ((y - height / 2) / height) ** 2 + ((x - width / 2.2) / width) ** 2
    return (far + 0.05 * torch.randn(height, width, generator=g) < 0.12).float()


def _ceiling_inputs(g):
    mask = _blobs(g, 30, 50)
    yield mask, torch.tensor([8.3, 6.2, 36.9, 25.7])
    yield mask, torch.tensor([20.6, 2.1, 48.4, 18.8])
    yield _blobs(g, 44, 20), torch.tensor([-3.2, 10.4, 9.7, 60.9])  # beyond the picture
    yield mask, torch.tensor([0.0, 0, 50, 30])  # all of it


def _ceiling_like(mask, box, *, swapped=False, by="centre", over="mask"):
    height, width = mask.shape
    x1, y1, x2, y2 = box.tolist() if not swapped else box[[1, 0, 3, 2]].tolist()
    shift = 0.5 if by == "centre" else 0.0
    if by == "whole":
        x1, y1, x2, y2 = (int(value) for value in (x1, y1, x2, y2))
    xs, ys = torch.arange(width) + shift, torch.arange(height) + shift
    inside = ((ys >= y1) & (ys < y2))[:, None] & ((xs >= x1) & (xs < x2))
    both = (mask * inside).sum()
    if over == "box":
        return both / inside.sum().clamp(min=1)
    if over == "union":
        return both / torch.maximum(mask, inside.float()).sum()
    return both / mask.sum()


def _ceiling_loop(mask, box):
    x1, y1, x2, y2 = box.tolist()
    seen = total = 0
    for y, x in mask.nonzero().tolist():
        total += 1
        seen += x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2
    return seen / total


BOX_CEILING = Exercise(
    name="box_ceiling",
    chapter=10,
    difficulty=2,
    minutes=15,
    stub='''
def box_ceiling(mask, box):
    """The highest IoU with `mask` of any mask that is drawn inside of `box` alone.

    mask: (H, W) float32 of 0 and 1, with at least one 1. box: (4,) float32, xyxy in pixels; it may reach
    beyond the picture. A pixel is inside if its centre (x + 0.5, y + 0.5) is; no centre lies on a side.
    Returns a number from 0 to 1.
    """
'''.strip(),
    reference=_ceiling_like,
    inputs=_ceiling_inputs,
    others=(_ceiling_loop,),
    mistakes=(
        planted("x and y are swapped: the rows of a mask are y", _ceiling_like, swapped=True),
        planted(
            "gives the IoU of the mask and the filled box: the best mask leaves out the background",
            _ceiling_like,
            over="union",
        ),
        planted("divides by the pixels of the box: divide by those of the mask", _ceiling_like, over="box"),
        planted(
            "tests the corner of each pixel: its centre is half a pixel further", _ceiling_like, by="corner"
        ),
        planted("the box is cut to whole pixels: compare with the centres", _ceiling_like, by="whole"),
    ),
)

EXERCISES = (GROW_BOX, PASTE, BOX_CEILING)
