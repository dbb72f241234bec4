"""Chapter 4: from the RPN's maps to a thousand good boxes."""

from __future__ import annotations

import torch
import torchvision

from minimrcnn import boxes as box_ops
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- flatten_deltas


def _flatten_inputs(g):
    yield inputs.signed(g, 2, 12, 3, 5), 3
    yield inputs.signed(g, 3, 4, 4, 2), 1
    yield inputs.signed(g, 1, 20, 2, 3), 5


def _flatten_like(output, anchors, order="HWA", four_first=False):
    b, _, h, w = output.shape
    if four_first:
        maps = output.view(b, 4, anchors, h, w).transpose(1, 2)
    else:
        maps = output.view(b, anchors, 4, h, w)
    axes = {"HWA": (0, 3, 4, 1, 2), "WHA": (0, 4, 3, 1, 2), "AHW": (0, 1, 3, 4, 2)}[order]
    return maps.permute(axes).reshape(b, -1, 4)


def _flatten_loop(output, anchors):
    b, _, h, w = output.shape
    rows = [
        [output[n, 4 * a : 4 * a + 4, i, j] for i in range(h) for j in range(w) for a in range(anchors)]
        for n in range(b)
    ]
    return [torch.stack(of_picture) for of_picture in rows]


FLATTEN_DELTAS = Exercise(
    name="flatten_deltas",
    chapter=4,
    difficulty=2,
    minutes=10,
    stub='''
def flatten_deltas(output, anchors):
    """The map of the RPN's box branch as one row of four deltas an anchor, in the order of the anchors.

    output: (B, anchors * 4, H, W) float32; channels 4 * a to 4 * a + 3 hold dx, dy, dw, dh of anchor a.
    anchors: how many a cell.
    Returns (B, H * W * anchors, 4) float32: row by row of the map, in a row column by column, in a cell
    anchor by anchor.
    """
'''.strip(),
    reference=lambda output, anchors: output.permute(0, 2, 3, 1).reshape(len(output), -1, 4),
    inputs=_flatten_inputs,
    others=(_flatten_like, _flatten_loop),
    mistakes=(
        planted(
            "the memory is cut into fours as it lies: the channels must be moved last before",
            lambda output, anchors: output.reshape(len(output), -1, 4),
        ),
        planted(
            "the rows are in the wrong order: yours go down the columns of the map first",
            _flatten_like,
            order="WHA",
        ),
        planted(
            "the rows are in the wrong order: all anchors of one cell come together",
            _flatten_like,
            order="AHW",
        ),
        planted(
            "the channels are read as (4, anchors): the four deltas of one anchor lie side by side",
            _flatten_like,
            four_first=True,
        ),
    ),
    batched=(0,),
)

# ---------------------------------------------------------------- nms


def _nms_inputs(g):
    centres = inputs.boxes(g, 4, 60, 100, smallest=15)
    boxes = centres.repeat(5, 1) + inputs.uniform(g, -4, 4, 20, 4)
    yield boxes, inputs.scores(g, 20), 0.5
    yield boxes, inputs.scores(g, 20), 0.7
    # A drops B; B would drop C, but B is gone; and C stays, because A does not reach it.
    yield (
        torch.tensor([[20.0, 0, 30, 5], [10.0, 0, 20, 5], [15.0, 0, 25, 5]]),
        torch.tensor([0.3, 0.9, 0.6]),
        0.3,
    )
    yield (
        torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1], [0, 0, 2, 1]]),
        torch.tensor([0.9, 0.8, 0.7]),
        0.5,
    )  # IoU exactly .5
    yield boxes[:1], torch.tensor([0.2]), 0.5
    yield boxes[:0], torch.zeros(0), 0.5


def _nms_like(
    boxes, scores, threshold, *,
    closed=False, descending=True, ordered=True, dead_drop=False, by_row=False, neighbour=False, flags=False,
):  # fmt: skip
    overlap = box_ops.iou(boxes, boxes)
    order = scores.argsort(descending=descending).tolist() if ordered else list(range(len(boxes)))
    kept: list[int] = []
    for place, row in enumerate(order):
        better = order[:place] if dead_drop else kept
        better = better[-1:] if neighbour else better
        if not any(overlap[row, b] >= threshold if closed else overlap[row, b] > threshold for b in better):
            kept.append(row)
    if flags:
        return torch.tensor([row in kept for row in range(len(boxes))], dtype=torch.bool)
    return torch.tensor(sorted(kept) if by_row else kept, dtype=torch.int64)


def _nms_list(boxes, scores, threshold):
    rest, kept = sorted(range(len(boxes)), key=lambda row: -float(scores[row])), []
    while rest:
        best = rest.pop(0)
        kept.append(best)
        rest = [
            row
            for row in rest
            if float(box_ops.iou(boxes[best : best + 1], boxes[row : row + 1])) <= threshold
        ]
    return kept


NMS = Exercise(
    name="nms",
    chapter=4,
    difficulty=3,
    minutes=25,
    part="nms",
    stub='''
def nms(boxes, scores, threshold):
    """Non-maximum suppression: take the best box, drop those that overlap it, repeat with what is left.

    boxes: (N, 4) float32, xyxy in pixels; N may be 0. scores: (N,) float32, all different.
    threshold: a box is dropped if its IoU with a better box that stays is larger than this.
    Returns (M,) int64: the rows of the boxes that stay, by falling score.
    """
'''.strip(),
    reference=box_ops.nms_greedy,
    inputs=_nms_inputs,
    others=(_nms_like, _nms_list, lambda *arguments: torchvision.ops.nms(*arguments)),
    mistakes=(
        planted("an IoU of exactly the threshold does not drop a box", _nms_like, closed=True),
        planted("starts with the worst box: by falling score", _nms_like, descending=False),
        planted(
            "the scores are ignored: the boxes are taken in the order in which they come",
            _nms_like,
            ordered=False,
        ),
        planted("a box that was dropped itself still drops others", _nms_like, dead_drop=True),
        planted(
            "compares a box with the last one kept alone: compare it with all that are kept",
            _nms_like,
            neighbour=True,
        ),
        planted("the rows that stay must come by falling score", _nms_like, by_row=True),
        planted("gives True and False a box: give the rows that stay", _nms_like, flags=True),
    ),
)

# ---------------------------------------------------------------- select_proposals


def _select_inputs(g):
    inside = inputs.boxes(g, 12, 40, 90)
    beyond = inside + inputs.uniform(g, -25, 25, 12, 1)
    thin = torch.tensor(
        [[5.0, 5, 6, 30], [5.0, 5, 30, 6], [-20.0, 5, 2, 30], [80, 36, 99, 60], [-9, -9, -2, -2]]
    )
    boxes = torch.cat([beyond, thin])
    yield boxes, inputs.scores(g, len(boxes)), 40, 90, 8, 3.0
    yield boxes, inputs.scores(g, len(boxes)), 40, 90, 16, 5.0
    yield boxes, inputs.scores(g, len(boxes)), 40, 90, 100, 1.0  # more than there are
    yield inside, inputs.scores(g, 12), 60, 95, 5, 0.0


def _select_like(
    boxes, scores, height, width, number, min_size, *,
    cut=True, first="top", swapped=False, small_first=False, descending=True, both=False, ordered=True,
    drops=True,
):  # fmt: skip
    def large(some):
        size = some[:, 2:] - some[:, :2]
        enough = (size >= min_size) & (size > 0)
        return enough.any(dim=1) if both else enough.all(dim=1)

    def drop_small(some):
        return (x[large(some[0])] for x in some) if drops else some

    if small_first:
        boxes, scores = drop_small((boxes, scores))
    if swapped:
        height, width = width, height
    limit = torch.tensor([width, height, width, height])
    order = scores.argsort(descending=descending)
    order = order if ordered else order[:number].sort().values
    if first == "top":
        boxes, scores = boxes[order[:number]], scores[order[:number]]
    else:
        boxes, scores = boxes[order], scores[order]
    if cut:
        boxes = torch.minimum(boxes.clamp(min=0), limit)
    if not small_first:
        boxes, scores = drop_small((boxes, scores))
    return boxes[:number], scores[:number]


def _select_reference(boxes, scores, height, width, number, min_size):
    top, order = scores.topk(min(number, len(scores)))
    boxes = box_ops.clip(boxes[order][None], torch.tensor([[height, width]]))[0]
    large = box_ops.large_enough(boxes, min_size)
    return boxes[large], top[large]


def _select_loop(boxes, scores, height, width, number, min_size):
    kept, points = [], []
    ranked = sorted(zip(scores.tolist(), boxes.tolist(), strict=True), reverse=True)
    for score, (x1, y1, x2, y2) in ranked[:number]:
        x1, x2 = (min(max(x, 0), width) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), height) for y in (y1, y2))
        if min(x2 - x1, y2 - y1) >= min_size and x2 > x1 and y2 > y1:
            kept.append([x1, y1, x2, y2])
            points.append(score)
    return kept, points


SELECT_PROPOSALS = Exercise(
    name="select_proposals",
    chapter=4,
    difficulty=2,
    minutes=15,
    stub='''
def select_proposals(boxes, scores, height, width, number, min_size):
    """What one level of the pyramid hands to the non-maximum suppression, in three steps.

    Take the `number` boxes of the largest scores; cut them to the picture, 0 to width and 0 to height; drop
    those that are then narrower or lower than min_size, or have no area.
    boxes: (N, 4) float32, xyxy in pixels. scores: (N,) float32, all different. number may be more than N.
    Returns the boxes (M, 4) and their scores (M,), by falling score.
    """
'''.strip(),
    reference=_select_reference,
    inputs=_select_inputs,
    others=(_select_like, _select_loop),
    mistakes=(
        planted("the boxes are not cut to the picture", _select_like, cut=False),
        planted(
            "width and height are swapped: x is cut at the width, y at the height", _select_like, swapped=True
        ),
        planted(
            "small boxes are dropped before the others are cut to the picture", _select_like, small_first=True
        ),
        planted(
            "small boxes are dropped before the best are taken: the cut by score comes first",
            _select_like,
            first="all",
        ),
        planted("small boxes are not dropped", _select_like, drops=False),
        planted(
            "a box is dropped if one of its sides is too small, not only if both are", _select_like, both=True
        ),
        planted("takes the smallest scores", _select_like, descending=False),
        planted("the boxes must come by falling score", _select_like, ordered=False),
    ),
)

# ---------------------------------------------------------------- recall


def _recall_inputs(g):
    truth = inputs.boxes(g, 6, 60, 100, smallest=12)
    proposals = torch.cat(
        [truth[[0, 0, 3, 1, 4]] + inputs.uniform(g, -2, 2, 5, 4), inputs.boxes(g, 15, 60, 100)]
    )
    proposals = proposals[torch.randperm(20, generator=g)]
    for number in (3, 8, 20, 100):
        yield proposals, truth, number, 0.5
    yield proposals, truth, 20, 0.8
    yield (
        torch.tensor([[0.0, 0, 1, 1]]),
        torch.tensor([[0.0, 0, 2, 1], [9, 9, 10, 10]]),
        5,
        0.5,
    )  # IoU exactly .5
    yield proposals[:0], truth, 10, 0.5


def _recall_like(proposals, truth, number, threshold, *, of="truth", cut=True, closed=True):
    overlap = box_ops.iou(truth, proposals[:number] if cut else proposals)  # (G, K)
    hit = overlap >= threshold if closed else overlap > threshold
    if of == "proposals":
        return hit.any(dim=0).float().mean() if hit.shape[1] else 0.0
    if of == "pairs":
        return hit.sum() / len(truth)
    return hit.any(dim=1).float().mean()


def _recall_loop(proposals, truth, number, threshold):
    found = 0
    for box in truth:
        for proposal in proposals[:number]:
            if box_ops.iou(box[None], proposal[None]).item() >= threshold:
                found += 1
                break
    return found / len(truth)


RECALL = Exercise(
    name="recall",
    chapter=4,
    difficulty=2,
    minutes=15,
    stub='''
def recall(proposals, truth, number, threshold):
    """The share of the objects that some of the first `number` proposals cover.

    proposals: (K, 4) float32, xyxy in pixels, by falling score; K may be 0. truth: (G, 4), G at least 1.
    threshold: an object is covered by a proposal if their IoU is at least this.
    Returns a number from 0 to 1.
    """
'''.strip(),
    reference=_recall_like,
    inputs=_recall_inputs,
    others=(_recall_loop,),
    mistakes=(
        planted(
            "gives the share of the proposals that cover an object: that is precision",
            _recall_like,
            of="proposals",
        ),
        planted("an object that two proposals cover is counted twice", _recall_like, of="pairs"),
        planted("`number` is ignored", _recall_like, cut=False),
        planted("an IoU of exactly the threshold covers the object", _recall_like, closed=False),
    ),
)

EXERCISES = (FLATTEN_DELTAS, NMS, SELECT_PROPOSALS, RECALL)
