"""Chapter 10, first part: from logits to instances."""

from __future__ import annotations

import torch

from minimrcnn import boxes as box_ops
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- select_detections


def _select_inputs(g):
    centres = inputs.boxes(g, 4, 60, 100, smallest=15).repeat(4, 1)  # (16, 4)
    boxes = centres[:, None] + inputs.uniform(g, -4, 4, 16, 4, 4)
    scores = inputs.scores(g, 64).view(16, 4)
    for number in (6, 20, 100):
        yield scores, boxes, 0.3, 0.4, number
    exact = torch.tensor([[0.5, 0.25, 0.75], [0.125, 0.375, 0.0625]])  # one score is exactly the threshold
    yield exact, boxes[:2, :3], 0.25, 0.5, 100
    yield scores[:, :2], boxes[:, :2], 0.1, 0.5, 3
    yield scores, boxes, 1.0, 0.5, 10  # nothing


def _select_like(
    scores, boxes, threshold, nms_threshold, number, *,
    background=False, one_heap=False, best_class=False, closed=False, from_zero=False, cut_first=False,
    by_class=False, cut=True, first_box=False,
):  # fmt: skip
    start = 0 if background else 1
    taken = scores >= threshold if closed else scores > threshold
    taken[:, :start] = False
    if best_class:
        taken &= scores == scores[:, 1:].amax(dim=1, keepdim=True)
    rows, labels = taken.nonzero(as_tuple=True)
    score = scores[rows, labels]
    order = score.argsort(descending=True)
    order = order[:number] if cut_first else order
    rows, labels, score = rows[order], labels[order], score[order]
    box = boxes[rows, 1 if first_box else labels]
    groups = torch.zeros_like(labels) if one_heap else labels
    kept = [score.new_zeros(0, dtype=torch.int64)]
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        kept.append(members[box_ops.nms_greedy(box[members], score[members], nms_threshold)])
    kept = torch.cat(kept)
    kept = kept if by_class else kept.sort().values
    kept = kept[:number] if cut else kept
    return box[kept], score[kept], labels[kept] - (1 if from_zero else 0)


def _select_loop(scores, boxes, threshold, nms_threshold, number):
    found = []
    for label in range(1, scores.shape[1]):
        rows = [row for row in range(len(scores)) if scores[row, label] > threshold]
        if rows:
            kept = box_ops.nms_greedy(boxes[rows, label], scores[rows, label], nms_threshold)
            found += [(float(scores[rows[k], label]), label, boxes[rows[k], label]) for k in kept.tolist()]
    found = sorted(found, key=lambda one: -one[0])[:number]
    of_boxes = torch.stack([box for _, _, box in found]) if found else torch.zeros(0, 4)
    return of_boxes, torch.tensor([s for s, _, _ in found]), torch.tensor([n for _, n, _ in found]).long()


SELECT_DETECTIONS = Exercise(
    name="select_detections",
    chapter=10,
    difficulty=3,
    minutes=25,
    stub='''
def select_detections(scores, boxes, threshold, nms_threshold, number):
    """From (proposal, class) pairs to the detections of one picture.

    Take the pairs whose score is above `threshold`, without class 0, the background; suppress within each
    class (a box goes if its IoU with a better one of its class is above nms_threshold); keep the `number`
    best of what is left, all classes together.
    scores: (K, C) float32, all different. boxes: (K, C, 4) float32, the box of each proposal for each class.
    Returns boxes (D, 4), scores (D,) and labels (D,) int64 from 1 to C - 1, by falling score; D may be 0.
    """
'''.strip(),
    reference=_select_like,
    inputs=_select_inputs,
    others=(_select_loop,),
    mistakes=(
        planted("class 0 is the background: it makes no detections", _select_like, background=True),
        planted(
            "boxes of different classes suppress one another: NMS goes class by class",
            _select_like,
            one_heap=True,
        ),
        planted(
            "each proposal gives its best class alone: every pair above the threshold counts",
            _select_like,
            best_class=True,
        ),
        planted("a score of exactly the threshold is not above it", _select_like, closed=True),
        planted("the labels start at 0: class 0 is the background", _select_like, from_zero=True),
        planted("the best are taken before the NMS: suppress first", _select_like, cut_first=True),
        planted(
            "the detections come class by class: sort them by score, all classes together",
            _select_like,
            by_class=True,
        ),
        planted("`number` is ignored", _select_like, cut=False),
        planted("the boxes are those of class 1: each class has its own", _select_like, first_box=True),
    ),
)

# ---------------------------------------------------------------- score_sweep


def _sweep_inputs(g):
    scores = inputs.scores(g, 30)
    right = torch.rand(30, generator=g) < scores
    yield scores, right, 25, [0.3, 0.5, 0.7, 0.9]
    yield scores, right, 40, [0.04, 0.86]
    yield torch.tensor([0.25, 0.5, 0.75]), torch.tensor([True, False, True]), 4, [0.25, 0.5]  # exactly
    yield scores, right, 25, [0.5, 1.0]  # nothing is above 1


def _sweep_like(
    scores, right, objects, thresholds, *, closed=False, swapped=False, of="objects", below=False, empty=0.0
):
    at = torch.tensor(thresholds)[:, None]
    above = scores >= at if closed else scores > at
    above = ~above if below else above
    kept, good = above.sum(dim=1), (above & right).sum(dim=1)
    precision = torch.where(kept > 0, good / kept.clamp(min=1), empty)
    recall = good / (objects if of == "objects" else max(int(right.sum()), 1))
    columns = [kept.float(), recall, precision] if swapped else [kept.float(), precision, recall]
    return torch.stack(columns, dim=1)


def _sweep_loop(scores, right, objects, thresholds):
    rows = []
    for threshold in thresholds:
        chosen = [bool(r) for s, r in zip(scores.tolist(), right.tolist(), strict=True) if s > threshold]
        rows.append([float(len(chosen)), sum(chosen) / max(len(chosen), 1), sum(chosen) / objects])
    return rows


SCORE_SWEEP = Exercise(
    name="score_sweep",
    chapter=10,
    difficulty=2,
    minutes=10,
    stub='''
def score_sweep(scores, right, objects, thresholds):
    """How many detections a score threshold keeps, and their precision and recall.

    scores: (D,) float32. right: (D,) bool, whether each detection is right. objects: how many there are to be
    found. thresholds: a list of T numbers; a detection is kept if its score is above the threshold.
    Returns (T, 3) float32: the number kept, the precision (0 where nothing is kept), the recall.
    """
'''.strip(),
    reference=_sweep_like,
    inputs=_sweep_inputs,
    others=(_sweep_loop,),
    mistakes=(
        planted("precision and recall are swapped", _sweep_like, swapped=True),
        planted(
            "the recall is measured against the right detections: divide by the objects",
            _sweep_like,
            of="right",
        ),
        planted("keeps what is below the threshold", _sweep_like, below=True),
        planted("a score of exactly the threshold is not above it", _sweep_like, closed=True),
        planted("where nothing is kept the precision is 0", _sweep_like, empty=1.0),
    ),
)

EXERCISES = (SELECT_DETECTIONS, SCORE_SWEEP)
