"""Chapter 1: masks as COCO writes them down."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask

from minimrcnn import outlines
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted


def _blobs(g, height, width):
    """A mask (H, W) uint8 with runs of many lengths: smooth noise above 0."""
    coarse = inputs.signed(g, 1, 1, max(height // 3, 1), max(width // 3, 1))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0, 0]
    return (smooth > 0).to(torch.uint8)


# ---------------------------------------------------------------- rle_encode


def _encode_inputs(g):
    mask = _blobs(g, 9, 14)
    mask[0, 0] = 1  # the first run is 0 long
    yield (mask,)
    other = _blobs(g, 17, 6)
    other[0, 0] = 0
    other[-1, -1] = 1  # the last run is of ones
    yield (other,)
    yield (torch.zeros(3, 4, dtype=torch.uint8),)
    yield (torch.ones(3, 4, dtype=torch.uint8),)


def _encode_like(mask, *, columns=True, zeros_first=True, last=True, starts=False):
    line = np.asarray(mask).ravel(order="F" if columns else "C")
    change = np.flatnonzero(np.diff(line, prepend=0 if zeros_first else line[0]))
    if starts:
        return change.tolist()
    runs = np.diff(change, prepend=0, append=line.size).tolist()
    return runs if last else runs[:-1]


def _encode_loop(mask):
    counts, current = [0], 0
    for value in mask.T.flatten().tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return torch.tensor(counts)


RLE_ENCODE = Exercise(
    name="rle_encode",
    chapter=1,
    difficulty=2,
    minutes=15,
    stub='''
def rle_encode(mask):
    """The run lengths of a mask, as COCO counts them.

    mask: (H, W) uint8, 0 or 1, as pycocotools decodes it; H and W are at least 1.
    Returns a list of int: pixels down the columns, left to right; the first number counts zeros and is 0
    where the first pixel is 1, then ones, then zeros, and so on to the last pixel. The numbers add up
    to H * W; none but the first is 0.
    """
'''.strip(),
    reference=_encode_like,
    inputs=_encode_inputs,
    others=(_encode_loop,),
    mistakes=(
        planted("goes along the rows: COCO goes down the columns", _encode_like, columns=False),
        planted(
            "the first number must count zeros, and be 0 where the mask begins with ones",
            _encode_like,
            zeros_first=False,
        ),
        planted("the last run is missing", _encode_like, last=False),
        planted("gives the places where runs begin: their lengths are wanted", _encode_like, starts=True),
    ),
)

# ---------------------------------------------------------------- rle_decode


def _decode_inputs(g):
    for height, width in ((9, 14), (17, 6)):
        yield _encode_like(_blobs(g, height, width)), height, width
    yield [0, 2, 2, 2, 2, 1, 3], 3, 4  # begins with ones
    yield [12], 3, 4


def _decode_like(counts, height, width, *, columns=True, zeros_first=True, reshape=True):
    first = 0 if zeros_first else 1
    values = torch.arange(first, len(counts) + first) % 2 == 1
    line = values.repeat_interleave(torch.as_tensor(counts))
    if not columns:
        return line.view(height, width)
    return line.view(width, height).T if reshape else line.view(width, height)


def _decode_loop(counts, height, width):
    mask, place = torch.zeros(height, width, dtype=torch.bool), 0
    for number, count in enumerate(counts):
        for i in range(place, place + count):
            mask[i % height, i // height] = number % 2 == 1
        place += count
    return mask


RLE_DECODE = Exercise(
    name="rle_decode",
    chapter=1,
    difficulty=2,
    minutes=10,
    stub='''
def rle_decode(counts, height, width):
    """The mask of COCO's run lengths: the inverse of `rle_encode`.

    counts: list of int, first zeros, then ones, and so on, down the columns; they add up to height * width.
    Returns (height, width) bool.
    """
'''.strip(),
    reference=_decode_like,
    inputs=_decode_inputs,
    others=(_decode_loop,),
    mistakes=(
        planted("fills the mask along its rows: the runs go down the columns", _decode_like, columns=False),
        planted("zeros and ones are swapped: the first run is of zeros", _decode_like, zeros_first=False),
        planted("transposed: (height, width) is wanted", _decode_like, reshape=False),
    ),
)

# ---------------------------------------------------------------- rle_string


def _string_inputs(g):
    for height, width in ((40, 31), (12, 90)):
        yield (_encode_like(_blobs(g, height, width)),)
    yield ([0, 16, 17, 31, 32, 1000, 5, 5, 3000, 1],)  # the sign bit, two pieces, three, falling runs
    yield ([5, 2],)


def _string_like(counts, *, difference=2, first=3, bits=5, sign=True, high_first=False, offset=48):
    text = ""
    for i, count in enumerate(counts):
        number = count - counts[i - difference] if difference and i >= first else count
        pieces = []
        while True:
            piece, number = number & (2**bits - 1), number >> bits
            negative = bool(piece >> (bits - 1))
            done = number == (-1 if negative else 0) if sign else number in (0, -1)
            pieces.append(piece | (0 if done else 2**bits))
            if done:
                break
        text += "".join(chr(offset + p) for p in (reversed(pieces) if high_first else pieces))
    return text


def _string_official(counts):
    return coco_mask.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))[
        "counts"
    ].decode()


RLE_STRING = Exercise(
    name="rle_string",
    chapter=1,
    difficulty=4,
    minutes=30,
    stub='''
def rle_string(counts):
    """COCO's compressed string of run lengths, byte for byte as pycocotools writes it.

    counts: list of int >= 0.
    From the fourth count on, the difference to the count two before is written. Each number goes five bits
    at a time, the lowest first; 32 is added where more pieces follow. It ends as soon as what is left after
    the shift is 0 and bit 16 of the piece is clear, or is -1 and bit 16 is set. Each piece is the
    character chr(48 + piece).
    Returns str.
    """
'''.strip(),
    reference=_string_official,
    inputs=_string_inputs,
    others=(
        _string_like,
        lambda counts: outlines.compress(np.array(counts), np.zeros(len(counts), dtype=np.int64))[0],
    ),
    mistakes=(
        planted(
            "the counts themselves are written: from the fourth on, differences", _string_like, difference=0
        ),
        planted("the difference is to the count two before, not one", _string_like, difference=1),
        planted("differences begin with the fourth count, yours with the third", _string_like, first=2),
        planted(
            "the sign bit is forgotten: 17 needs a second piece, or it is read as -15",
            _string_like,
            sign=False,
        ),
        planted("the pieces of a number are written highest first", _string_like, high_first=True),
    ),
)

# ---------------------------------------------------------------- box_from_mask


def _box_inputs(g):
    mask = torch.zeros(20, 33, dtype=torch.uint8)
    mask[4:9, 11:30] = _blobs(g, 5, 19)
    mask[4, 20] = mask[8, 12] = mask[6, 11] = mask[5, 29] = 1
    yield (mask,)
    one = torch.zeros(7, 5, dtype=torch.uint8)
    one[6, 2] = True
    yield (one,)
    yield (torch.ones(3, 8, dtype=torch.uint8),)
    yield (torch.zeros(6, 4, dtype=torch.uint8),)


def _box_like(mask, *, end=1, swap=False, size=False, whole=False):
    ys, xs = mask.nonzero(as_tuple=True)
    if not len(ys):
        return torch.zeros(4, dtype=torch.int64)
    if whole:
        return torch.tensor([0, 0, mask.shape[1], mask.shape[0]])
    x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + end, int(ys.max()) + end
    if size:
        x2, y2 = x2 - x1, y2 - y1
    return torch.tensor([y1, x1, y2, x2] if swap else [x1, y1, x2, y2])


def _box_loop(mask):
    places = [(x, y) for y, row in enumerate(mask.tolist()) for x, value in enumerate(row) if value]
    if not places:
        return [0, 0, 0, 0]
    xs, ys = zip(*places, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


BOX_FROM_MASK = Exercise(
    name="box_from_mask",
    chapter=1,
    difficulty=2,
    minutes=10,
    stub='''
def box_from_mask(mask):
    """The tight box of a mask: x1, y1, x2, y2 in pixels.

    mask: (H, W) uint8, 0 or 1. x2 and y2 are exclusive: a mask whose last column is 8 has x2 = 9.
    Returns four whole numbers (list, tuple or int64 tensor); 0, 0, 0, 0 where the mask has no pixel.
    """
'''.strip(),
    reference=_box_like,
    inputs=_box_inputs,
    others=(_box_loop,),
    mistakes=(
        planted("x2 and y2 are exclusive: one more than the last column and row", _box_like, end=0),
        planted("x and y are swapped", _box_like, swap=True),
        planted("gives x, y, width, height: corners are wanted", _box_like, size=True),
        planted("gives the box of the whole picture", _box_like, whole=True),
    ),
)

# ---------------------------------------------------------------- polygon_area


def _polygon_inputs(g):
    yield (torch.tensor([[1.0, 1], [7, 1], [1, 5]]),)  # 12
    angle = torch.linspace(0, 2 * torch.pi, 9)[:-1]
    for way in (1, -1):  # clockwise and not: the area has no sign
        star = torch.stack([angle.cos(), way * angle.sin()], dim=1) * inputs.uniform(g, 3, 9, 8, 1)
        yield (star + torch.tensor([12.5, 7.25]),)
    yield (torch.tensor([[2.0, 3], [8, 3]]),)  # no area


def _polygon_like(corners, *, absolute=True, half=True, closed=True, box=False):
    x, y = corners.double().T
    if box:
        return ((x.max() - x.min()) * (y.max() - y.min())).item()
    terms = x * y.roll(-1) - x.roll(-1) * y
    total = terms.sum() if closed else terms[:-1].sum()
    total = total / 2 if half else total
    return float(total.abs() if absolute else total)


def _polygon_loop(corners):
    points, total = corners.tolist(), 0.0
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        total += (xb - xa) * (ya + yb)  # the trapezium under the side
    return abs(total) / 2


POLYGON_AREA = Exercise(
    name="polygon_area",
    chapter=1,
    difficulty=1,
    minutes=10,
    stub='''
def polygon_area(corners):
    """The area of a polygon (the shoelace formula), in square pixels.

    corners: (N, 2) float32, x and y in order along the outline, either way round; N is at least 2, and the
    last corner is joined to the first.
    Returns a number >= 0.
    """
'''.strip(),
    reference=_polygon_like,
    inputs=_polygon_inputs,
    others=(_polygon_loop,),
    mistakes=(
        planted("an outline the other way round gives a negative area", _polygon_like, absolute=False),
        planted("the half is missing", _polygon_like, half=False),
        planted("the last corner is not joined to the first", _polygon_like, closed=False),
        planted("gives the area of the box around it", _polygon_like, box=True),
    ),
)

# ---------------------------------------------------------------- masks_from_map


def _map_inputs(g):
    numbers = torch.tensor([0, 7, 2, 40, 3])  # gaps, as painted by hand
    yield (numbers[torch.randint(5, (6, 9), generator=g)],)
    touching = torch.zeros(5, 8, dtype=torch.int64)
    touching[1:4, 1:4], touching[1:4, 4:7] = 2, 1
    touching[0, 7] = 2  # a piece of object 2 apart from the rest of it
    yield (touching,)
    yield (torch.full((4, 3), 5),)  # no background
    yield (torch.zeros(3, 4, dtype=torch.int64),)


def _map_like(instance_map, *, background=False, gaps=False, inclusive=False, falling=False):
    values = instance_map.unique()
    values = values if background else values[values > 0]
    if gaps:
        values = torch.arange(1, int(instance_map.max()) + 1)
    values = values.flip(0) if falling else values
    masks = [instance_map >= v if inclusive else instance_map == v for v in values.tolist()]
    return torch.stack(masks) if masks else torch.zeros(0, *instance_map.shape, dtype=torch.bool)


def _map_vectorised(instance_map):
    values = instance_map.unique()
    return instance_map == values[values > 0][:, None, None]


MASKS_FROM_MAP = Exercise(
    name="masks_from_map",
    chapter=1,
    difficulty=2,
    minutes=10,
    stub='''
def masks_from_map(instance_map):
    """One mask an object from an instance map.

    instance_map: (H, W) int64; 0 is the background, every other number an object. Numbers may have gaps,
    objects may touch or be in pieces.
    Returns (N, H, W) bool, one mask for each number that occurs, by ascending number; N may be 0.
    """
'''.strip(),
    reference=_map_like,
    inputs=_map_inputs,
    others=(_map_vectorised,),
    mistakes=(
        planted("the background is no object", _map_like, background=True),
        planted("numbers with gaps: there must be no empty masks between", _map_like, gaps=True),
        planted("each mask also holds the objects of higher numbers", _map_like, inclusive=True),
        planted("the masks are in falling order of their numbers", _map_like, falling=True),
    ),
)

EXERCISES = (RLE_ENCODE, RLE_DECODE, RLE_STRING, BOX_FROM_MASK, POLYGON_AREA, MASKS_FROM_MAP)
