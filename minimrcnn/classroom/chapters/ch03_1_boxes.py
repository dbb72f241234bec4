"""Chapter 3, first part: boxes compared and coded."""

from __future__ import annotations

import math

import torch

from minimrcnn import boxes as box_ops
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- iou


def _iou_inputs(g):
    a, b = inputs.boxes(g, 5, 40, 70), inputs.boxes(g, 7, 40, 70)
    yield a, b, 0
    yield a, b, 1
    apart = torch.tensor([[0.0, 0, 8, 6], [10, 8, 20, 16], [10, 0, 20, 6], [8, 0, 10, 6]])
    yield apart, apart, 0
    empty = torch.tensor([[2.0, 2, 2, 2], [3, 1, 3, 6]])  # without area, and each the same as itself
    yield empty, torch.cat([empty, a[:1]]), 0
    yield a[:0], b, 0


def _iou_like(
    a, b, plus_one=0, *,
    cut="after plus_one", union="right", guard=True, width_height=False, turned=False, hull=False,
    plus=("intersection", "a", "b"), plus_axes=(1, 1),
):  # fmt: skip
    if width_height:
        a, b = (torch.cat([x[:, :2], x[:, :2] + x[:, 2:]], dim=1) for x in (a, b))
    extra = plus_one * torch.tensor(plus_axes)  # (2,) what is added to width and height
    nearer, farther = (torch.minimum, torch.maximum) if hull else (torch.maximum, torch.minimum)
    sides = farther(a[:, None, 2:], b[None, :, 2:]) - nearer(a[:, None, :2], b[None, :, :2])
    if cut == "before plus_one":
        sides = sides.clamp(min=0)
    sides = sides + extra * ("intersection" in plus)
    if cut == "after plus_one":
        sides = sides.clamp(min=0)
    both = sides.prod(dim=2)  # (N, M)
    area_a = (a[:, 2:] - a[:, :2] + extra * ("a" in plus)).prod(dim=1)[:, None]
    area_b = (b[:, 2:] - b[:, :2] + extra * ("b" in plus)).prod(dim=1)[None]
    unions = {
        "right": area_a + area_b - both,
        "twice": area_a + area_b,
        "smaller": torch.minimum(area_a, area_b).expand_as(both),
        "none": torch.ones_like(both),
    }
    union_area = unions[union]
    table = torch.where(union_area > 0, both / union_area, 0.0) if guard else both / union_area
    return table.T if turned else table


def _iou_loop(a, b, plus_one=0):
    table = torch.zeros(len(a), len(b), dtype=torch.float64)
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.tolist()):
        for j, (bx1, by1, bx2, by2) in enumerate(b.tolist()):
            w = min(ax2, bx2) - max(ax1, bx1) + plus_one
            h = min(ay2, by2) - max(ay1, by1) + plus_one
            both = max(w, 0) * max(h, 0)
            area_a = (ax2 - ax1 + plus_one) * (ay2 - ay1 + plus_one)
            area_b = (bx2 - bx1 + plus_one) * (by2 - by1 + plus_one)
            union = area_a + area_b - both
            table[i, j] = both / union if union > 0 else 0
    return table


# Without a guard against an empty union it gives negative numbers, with one it gives 0: both are met.
HULL = "min and max are exchanged: the shared box begins at the larger x1, y1 and ends at the smaller x2, y2"

IOU = Exercise(
    name="iou",
    chapter=3,
    difficulty=2,
    minutes=15,
    part="iou",
    stub='''
def iou(a, b, plus_one=0):
    """Intersection over union of every pair of boxes.

    a: (N, 4), b: (M, 4) float32, xyxy in pixels. plus_one: 0, a box is x2 - x1 wide; 1, Detectron's
    counting of pixels, it is x2 - x1 + 1 wide (the same for its height, and for the intersection's).
    Returns (N, M) float32. A pair whose union has no area has IoU 0.
    """
'''.strip(),
    reference=box_ops.iou,
    inputs=_iou_inputs,
    others=(_iou_loop, _iou_like, lambda a, b, plus_one=0: _iou_loop(a, b, plus_one).tolist()),
    mistakes=(
        planted(
            "a negative overlap must count as 0: two boxes apart in x and in y seem to meet",
            _iou_like,
            cut="never",
        ),
        planted(HULL, _iou_like, hull=True),
        planted(HULL, _iou_like, hull=True, guard=False),
        planted("the intersection is counted twice in the union", _iou_like, union="twice"),
        planted("divides by the smaller area, not by the union", _iou_like, union="smaller"),
        planted(
            "gives the area of the intersection: it is not divided by the union", _iou_like, union="none"
        ),
        planted("plus_one is ignored", _iou_like, plus=()),
        planted("plus_one is missing in the areas: it counts there too", _iou_like, plus=("intersection",)),
        planted("plus_one is missing in the intersection: it counts there too", _iou_like, plus=("a", "b")),
        planted("plus_one is missing in the area of b", _iou_like, plus=("intersection", "a")),
        planted("plus_one is missing in the area of a", _iou_like, plus=("intersection", "b")),
        planted("plus_one counts in the area of a alone", _iou_like, plus=("a",)),
        planted("plus_one counts in the area of b alone", _iou_like, plus=("b",)),
        planted("plus_one is missing in the height: it counts there too", _iou_like, plus_axes=(1, 0)),
        planted("plus_one is missing in the width: it counts there too", _iou_like, plus_axes=(0, 1)),
        planted("1 is added although plus_one is 0", lambda a, b, plus_one: _iou_like(a, b, 1)),
        planted(
            "plus_one is added after a negative overlap was cut to 0: boxes that lie apart seem to meet",
            _iou_like,
            cut="before plus_one",
        ),
        planted("an empty union gives NaN (0 / 0), it must give 0", _iou_like, guard=False),
        planted("a box is (x1, y1, x2, y2), not (x, y, width, height)", _iou_like, width_height=True),
        planted("rows and columns are swapped: rows are a, columns are b", _iou_like, turned=True),
    ),
    groups=lambda a, b, plus_one: {
        "boxes without area": (box_ops.area(a, plus_one) == 0),
    },
)

# ---------------------------------------------------------------- encode


def _encode_inputs(g):
    boxes, anchors = inputs.boxes(g, 9, 50, 90), inputs.boxes(g, 9, 50, 90)
    yield boxes, anchors, (1.0, 1.0, 1.0, 1.0), 0
    yield boxes, anchors, (10.0, 10.0, 5.0, 5.0), 0
    yield anchors, boxes, (10.0, 20.0, 5.0, 2.0), 1
    yield anchors[:0], boxes[:0], (10.0, 10.0, 5.0, 5.0), 0


def _encode_like(
    boxes,
    anchors,
    weights,
    plus_one=0,
    *,
    weigh="times",
    unit="anchor",
    origin="centre",
    size="log",
    plus=("box", "anchor"),
):
    anchor = anchors[:, 2:] - anchors[:, :2] + plus_one * ("anchor" in plus)  # (N, 2) sizes
    box = boxes[:, 2:] - boxes[:, :2] + plus_one * ("box" in plus)
    share = 0.5 if origin == "centre" else 0.0
    shift = boxes[:, :2] + share * box - anchors[:, :2] - share * anchor
    shift = shift / {"anchor": anchor, "box": box, "pixels": 1, "swapped": anchor.flip(1)}[unit]
    scale = {
        "log": torch.log(box / anchor),
        "log2": torch.log2(box / anchor),
        "log10": torch.log10(box / anchor),
        "ratio": box / anchor,
        "upside down": torch.log(anchor / box),
    }[size]
    weight = torch.tensor(weights)
    weight = {
        "times": weight,
        "divided": 1 / weight,
        "none": torch.ones(4),
        "shift": torch.cat([weight[:2], torch.ones(2)]),
        "size": torch.cat([torch.ones(2), weight[2:]]),
        "swapped": weight.roll(2),
    }[weigh]
    return torch.cat([shift, scale], dim=1) * weight


def _encode_loop(boxes, anchors, weights, plus_one=0):
    deltas = []
    for (bx1, by1, bx2, by2), (ax1, ay1, ax2, ay2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        bw, bh = bx2 - bx1 + plus_one, by2 - by1 + plus_one
        aw, ah = ax2 - ax1 + plus_one, ay2 - ay1 + plus_one
        dx = (bx1 + bw / 2 - ax1 - aw / 2) / aw
        dy = (by1 + bh / 2 - ay1 - ah / 2) / ah
        code = (dx, dy, math.log(bw / aw), math.log(bh / ah))
        deltas.append([w * d for w, d in zip(weights, code, strict=True)])
    return torch.tensor(deltas, dtype=torch.float64).reshape(-1, 4)


ENCODE = Exercise(
    name="encode",
    chapter=3,
    difficulty=2,
    minutes=15,
    part="encode",
    stub='''
def encode(boxes, anchors, weights, plus_one=0):
    """The deltas that move each anchor onto its box.

    boxes, anchors: (N, 4) float32, xyxy in pixels. weights: 4 numbers, for dx, dy, dw, dh.
    plus_one: 1 where a box is x2 - x1 + 1 wide, otherwise 0.
    Returns (N, 4) float32: the shift of the centre in units of the anchor's width and height, and the
    log of the ratio of the sizes, each times its weight.
    """
'''.strip(),
    reference=box_ops.encode,
    inputs=_encode_inputs,
    others=(_encode_loop, _encode_like),
    mistakes=(
        planted(
            "boxes and anchors are exchanged: the deltas move the anchors onto the boxes",
            lambda boxes, anchors, weights, plus_one: _encode_like(anchors, boxes, weights, plus_one),
        ),
        planted("the weights are ignored", _encode_like, weigh="none"),
        planted("dw and dh are not weighted: each delta has its own weight", _encode_like, weigh="shift"),
        planted("dx and dy are not weighted: each delta has its own weight", _encode_like, weigh="size"),
        planted("the weights are in the wrong order: that of dx, dy, dw, dh", _encode_like, weigh="swapped"),
        planted(
            "divides by the weights: encode multiplies by them, decode divides", _encode_like, weigh="divided"
        ),
        planted("the shift is in pixels: divide it by the anchor's size", _encode_like, unit="pixels"),
        planted("the shift is in units of the box: the anchor's size is the unit", _encode_like, unit="box"),
        planted("width and height are swapped in the shift", _encode_like, unit="swapped"),
        planted(
            "the shift is between the corners: it must be between the centres", _encode_like, origin="corner"
        ),
        planted("the log of the ratio of the sizes is missing", _encode_like, size="ratio"),
        planted("log2 in the place of the natural logarithm, log", _encode_like, size="log2"),
        planted("log10 in the place of the natural logarithm, log", _encode_like, size="log10"),
        planted("the ratio of the sizes is upside down: box over anchor", _encode_like, size="upside down"),
        planted("plus_one is ignored", _encode_like, plus=()),
        planted("plus_one is missing in the size of the boxes", _encode_like, plus=("anchor",)),
        planted("plus_one is missing in the size of the anchors", _encode_like, plus=("box",)),
    ),
)

# ---------------------------------------------------------------- decode


def _decode_inputs(g):
    anchors, deltas = inputs.boxes(g, 9, 50, 90), inputs.signed(g, 9, 4)
    yield deltas, anchors, (1.0, 1.0, 1.0, 1.0), 0
    yield deltas * torch.tensor([10, 10, 5, 5]), anchors, (10.0, 10.0, 5.0, 5.0), 0
    yield deltas, anchors, (10.0, 20.0, 5.0, 2.0), 1
    shifted = deltas * torch.tensor([10, 10, 5, 5])
    shifted[:4, :2] = inputs.uniform(g, 45, 80, 4, 2)  # nothing cuts dx and dy
    yield shifted, anchors, (10.0, 10.0, 5.0, 5.0), 0
    shrunk = deltas.clone()
    shrunk[:4, 2:] = inputs.uniform(g, -8.0, -4.5, 4, 2)  # nor dw and dh from below
    yield shrunk, anchors, (1.0, 1.0, 1.0, 1.0), 0
    deltas = deltas.clone()
    deltas[:4, 2:] = inputs.uniform(g, 4.2, 8.0, 4, 2)  # past the clamp, log(1000 / 16) = 4.135
    deltas[3, 2] = 70.0  # past 1000 / 16 itself
    yield deltas, anchors, (1.0, 1.0, 1.0, 1.0), 0
    yield deltas, anchors, (1.0, 1.0, 2.0, 2.0), 0  # past it before the weights are divided out
    yield deltas[:0], anchors[:0], (1.0, 1.0, 1.0, 1.0), 0


def _decode_like(
    deltas, anchors, weights, plus_one=0, *,
    weigh="divided", unit="anchor", clamp="after", share=0.5, exp=True, start="centre", plus=True, ends=True,
    least=-math.inf, most=box_ops.MAX_LOG_SCALE, corners=True,
):  # fmt: skip
    plus_one = plus_one if plus else 0
    size = anchors[:, 2:] - anchors[:, :2] + plus_one  # (N, 2)
    weight = torch.tensor(weights)
    if clamp == "before":
        deltas = torch.cat([deltas[:, :2], deltas[:, 2:].clamp(max=box_ops.MAX_LOG_SCALE)], dim=1)
    deltas = deltas * {"divided": 1 / weight, "times": weight, "none": torch.ones(4)}[weigh]
    if clamp == "all":
        deltas = deltas.clamp(max=most)
    centre = anchors[:, :2] + (0.5 if start == "centre" else 0.0) * size
    centre = centre + deltas[:, :2] * (size if unit == "anchor" else 1)
    change = deltas[:, 2:].clamp(least, most) if clamp == "after" else deltas[:, 2:]
    new = size * (torch.exp(change) if exp else change)
    if not corners:
        return torch.cat([centre, new], dim=1)
    return torch.cat([centre - share * new, centre + share * new - (plus_one if ends else 0)], dim=1)


def _decode_loop(deltas, anchors, weights, plus_one=0):
    boxes = []
    for delta, (x1, y1, x2, y2) in zip(deltas.tolist(), anchors.tolist(), strict=True):
        dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
        w, h = x2 - x1 + plus_one, y2 - y1 + plus_one
        x, y = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
        w, h = w * min(math.exp(dw), 1000 / 16), h * min(math.exp(dh), 1000 / 16)
        boxes.append([x - w / 2, y - h / 2, x + w / 2 - plus_one, y + h / 2 - plus_one])
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


DECODE = Exercise(
    name="decode",
    chapter=3,
    difficulty=2,
    minutes=15,
    part="decode",
    stub='''
def decode(deltas, anchors, weights, plus_one=0):
    """The inverse of encode: the boxes that deltas make of anchors.

    deltas: (N, 4) float32. anchors: (N, 4) float32, xyxy in pixels. weights: 4 numbers, divided out first.
    plus_one: 1 where a box is x2 - x1 + 1 wide, otherwise 0.
    A dw or dh above log(1000 / 16) counts as log(1000 / 16), so that exp() cannot overflow; there
    is no lower bound, and dx and dy are not cut.
    Returns (N, 4) float32 boxes, xyxy in pixels.
    """
'''.strip(),
    reference=box_ops.decode,
    inputs=_decode_inputs,
    others=(_decode_loop, _decode_like),
    mistakes=(
        planted("the weights are ignored", _decode_like, weigh="none"),
        planted("multiplies by the weights: decode divides by them", _decode_like, weigh="times"),
        planted(
            "dx and dy are taken as pixels: they are in units of the anchor's size",
            _decode_like,
            unit="pixels",
        ),
        planted("gives centre and size: give the corners (x1, y1, x2, y2)", _decode_like, corners=False),
        planted("the clamp of dw and dh is missing", _decode_like, clamp="none"),
        planted(
            "dw and dh are cut at 1000 / 16: cut them at its logarithm, log(1000 / 16)",
            _decode_like,
            most=1000 / 16,
        ),
        planted("dx and dy are clamped too: clamp only dw and dh", _decode_like, clamp="all"),
        planted(
            "dw and dh are clamped from below too: there is no lower bound",
            _decode_like,
            least=-box_ops.MAX_LOG_SCALE,
        ),
        planted("dw and dh are clamped before the weights are divided out", _decode_like, clamp="before"),
        planted("the corners lie a whole size from the centre: half of it", _decode_like, share=1.0),
        planted("dw and dh are logarithms: exp() is missing", _decode_like, exp=False),
        planted("starts from the anchor's corner: from its centre", _decode_like, start="corner"),
        planted("plus_one is ignored", _decode_like, plus=False),
        planted("with plus_one a box ends at x2 = x1 + width - 1", _decode_like, ends=False),
    ),
    groups=lambda deltas, anchors, weights, plus_one: {
        "boxes past the clamp of dw and dh": (deltas[:, 2:] / torch.tensor(weights[2:]) > 4.135).any(dim=1),
    },
)

EXERCISES = (IOU, ENCODE, DECODE)
