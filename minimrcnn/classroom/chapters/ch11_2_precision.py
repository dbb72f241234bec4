"""Chapter 11, second part: from right and wrong to AP, and to the kinds of errors."""

from __future__ import annotations

import numpy as np
import torch

from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- precision_recall


def _curve_inputs(g):
    yield torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False]), 3
    for count, objects in ((20, 15), (40, 60)):
        scores = inputs.scores(g, count)
        yield scores, torch.rand(count, generator=g) < scores, objects
    yield torch.tensor([0.5]), torch.tensor([False]), 2


def _curve_like(scores, right, objects, *, descending=True, ordered=True, of="objects", swapped=False):
    order = scores.argsort(descending=descending, stable=True) if ordered else torch.arange(len(scores))
    good = right[order].cumsum(dim=0)
    precision = good / torch.arange(1, len(good) + 1)
    recall = good / (objects if of == "objects" else max(int(right.sum()), 1))
    return torch.stack([recall, precision] if swapped else [precision, recall])


def _curve_loop(scores, right, objects):
    ranked = sorted(zip(scores.tolist(), right.tolist(), strict=True), key=lambda pair: -pair[0])
    rows, good = [], 0
    for seen, (_, is_right) in enumerate(ranked, start=1):
        good += is_right
        rows.append((good / seen, good / objects))
    return [[p for p, _ in rows], [r for _, r in rows]]


PRECISION_RECALL = Exercise(
    name="precision_recall",
    chapter=11,
    difficulty=2,
    minutes=10,
    stub='''
def precision_recall(scores, right, objects):
    """Precision and recall after each detection, from the best score down.

    scores: (D,) float32, all different, in no order; D is at least 1. right: (D,) bool. objects: how many
    there are to be found.
    Returns (2, D) float32: the precisions, then the recalls.
    """
'''.strip(),
    reference=_curve_like,
    inputs=_curve_inputs,
    others=(_curve_loop,),
    mistakes=(
        planted("the scores are ignored: go down from the best", _curve_like, ordered=False),
        planted("begins with the worst score", _curve_like, descending=False),
        planted(
            "the recall is measured against the right detections: divide by the objects",
            _curve_like,
            of="right",
        ),
        planted("precision and recall are swapped", _curve_like, swapped=True),
    ),
)

# ---------------------------------------------------------------- average_precision


def _ap_inputs(g):
    # Prime numbers of objects: no recall but 1 is a hundredth, whichever way it is rounded.
    yield torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False]), 3
    for count, objects in ((20, 17), (40, 61), (30, 19)):
        scores = inputs.scores(g, count)
        yield scores, torch.rand(count, generator=g) < scores, objects
    yield torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.tensor([True, False, True, True]), 3  # all are found
    yield torch.tensor([0.5]), torch.tensor([False]), 2
    yield torch.zeros(0), torch.zeros(0, dtype=torch.bool), 5


def _ap_like(
    scores, right, objects, *,
    points=101, envelope=True, stop="zero", area=False, ordered=True, of="objects", strictly=False,
):  # fmt: skip
    scores, right = scores.double().numpy(), right.numpy()
    order = np.argsort(-scores, kind="stable") if ordered else np.arange(len(scores))
    good = right[order].cumsum()
    precision = good / np.arange(1, len(good) + 1)
    recall = good / (objects if of == "objects" else max(right.sum(), 1))
    if envelope:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if area:
        return float((np.diff(recall, prepend=0) * precision).sum())
    first = np.searchsorted(recall, np.linspace(0, 1, points), side="right" if strictly else "left")
    past = precision[-1:] if stop == "last" and len(precision) else np.zeros(1)
    read = np.append(precision, past)[first]
    if stop == "skip":
        return float(read[first < len(precision)].mean()) if (first < len(precision)).any() else 0.0
    return float(read.mean())


def _ap_loop(scores, right, objects):
    ranked = sorted(zip(scores.tolist(), right.tolist(), strict=True), key=lambda pair: -pair[0])
    curve, good = [], 0
    for seen, (_, is_right) in enumerate(ranked, start=1):
        good += is_right
        curve.append((good / objects, good / seen))
    total = 0.0
    for point in np.linspace(0, 1, 101):
        total += max((p for r, p in curve if r >= point), default=0.0)
    return total / 101


AVERAGE_PRECISION = Exercise(
    name="average_precision",
    chapter=11,
    difficulty=3,
    minutes=25,
    stub='''
def average_precision(scores, right, objects):
    """COCO's AP of one category at one IoU threshold.

    At each of the recalls 0, 0.01, 0.02, ... 1: the largest precision at this recall or a larger one, 0 where
    the detections do not get that far. AP is the mean of the 101.
    scores: (D,) float32, all different, in no order; D may be 0. right: (D,) bool. objects: how many
    there are.
    Returns a number from 0 to 1.
    """
'''.strip(),
    reference=_ap_like,
    inputs=_ap_inputs,
    others=(_ap_loop,),
    mistakes=(
        planted(
            "reads the raw precision: take the largest at this recall or beyond", _ap_like, envelope=False
        ),
        planted("where the detections end the precision goes on: it is 0 there", _ap_like, stop="last"),
        planted("averages over the recalls that are reached: all 101 count", _ap_like, stop="skip"),
        planted("reads 11 points, as PASCAL VOC did: COCO reads 101", _ap_like, points=11),
        planted("gives the exact area under the curve: COCO reads 101 points", _ap_like, area=True),
        planted("the scores are ignored: go down from the best", _ap_like, ordered=False),
        planted(
            "the recall is measured against the right detections: divide by the objects", _ap_like, of="right"
        ),
        planted("a recall of exactly the point reaches it", _ap_like, strictly=True),
    ),
    tolerance=1e-5,
)

# ---------------------------------------------------------------- error_kinds


def _kinds_inputs(g):
    for _ in range(4):
        same = (torch.rand(40, 2, generator=g) * 20).round() / 20
        free = (torch.rand(40, generator=g) < 0.5) & (same[:, 1] >= 0.5)
        yield same[:, 0], same[:, 1], (torch.rand(40, generator=g) * 14).round() / 20, free
    edge = torch.tensor([0.5, 0.1, 0.05, 0.5, 0.5])
    yield (
        edge,
        torch.tensor([0.45, 0.0, 0, 0.5, 0.5]),
        torch.tensor([0.0, 0, 0.5, 0.5, 0]),
        torch.tensor([False, False, False, True, False]),
    )
    yield edge[:0], edge[:0], edge[:0], edge[:0] > 0


def _kinds_like(
    same_box, same_mask, other_mask, right, *, class_first=False, box_before=False, floor=0.1, closed=True,
    duplicates=True, masks=True,
):  # fmt: skip
    def reaches(values, level):
        return values >= level - 1e-6 if closed else values > level + 1e-6

    kinds = torch.full((len(same_box),), 5)
    kinds[reaches(same_box, floor)] = 4
    if masks:
        kinds[reaches(same_box, 0.5)] = 3
    other = reaches(other_mask, 0.5)
    kinds[other & ~reaches(same_box, 0.5) if box_before else other] = 2
    duplicate = reaches(same_mask, 0.5)
    if duplicates:
        kinds[duplicate & ~other if class_first else duplicate] = 1
    kinds[right] = 0
    return kinds


def _kinds_loop(same_box, same_mask, other_mask, right):
    kinds = []
    for box, mask, other, is_right in zip(
        same_box.tolist(), same_mask.tolist(), other_mask.tolist(), right.tolist(), strict=True
    ):
        tests = (is_right, mask >= 0.5, other >= 0.5, box >= 0.5, box >= 0.0999999)
        kinds.append(tests.index(True) if True in tests else 5)
    return torch.tensor(kinds, dtype=torch.int64)


ERROR_KINDS = Exercise(
    name="error_kinds",
    chapter=11,
    difficulty=2,
    minutes=15,
    stub='''
def error_kinds(same_box, same_mask, other_mask, right):
    """What is wrong with each detection; the first that holds counts.

    0 right; 1 a duplicate: same_mask is at least 0.5; 2 wrong class: other_mask is at least 0.5; 3 wrong
    mask: same_box is at least 0.5; 4 wrong box: same_box is at least 0.1; 5 background.
    same_box, same_mask: (D,) float32, the largest IoU of its box and of its mask with an object of its class.
    other_mask: (D,) the largest of its mask with an object of another class. right: (D,) bool. D may be 0.
    Returns (D,) int64.
    """
'''.strip(),
    reference=_kinds_like,
    inputs=_kinds_inputs,
    others=(_kinds_loop,),
    mistakes=(
        planted(
            "a duplicate of its own class is called wrong class: duplicate comes first",
            _kinds_like,
            class_first=True,
        ),
        planted(
            "a box that fits its own class hides a wrong class: class comes before mask",
            _kinds_like,
            box_before=True,
        ),
        planted("a box counts as touching from 0.1 on, not as soon as it overlaps", _kinds_like, floor=0.001),
        planted("an IoU of exactly the level is enough", _kinds_like, closed=False),
        planted("there are no duplicates in your answer", _kinds_like, duplicates=False),
        planted(
            "a box that fits with a mask that does not is a wrong mask, not a wrong box",
            _kinds_like,
            masks=False,
        ),
    ),
)

EXERCISES = (PRECISION_RECALL, AVERAGE_PRECISION, ERROR_KINDS)
