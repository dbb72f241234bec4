"""Chapter 11, first part: which detection is right."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask

from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- crowd_iou


def _masks(g, count, height, width):
    """Overlapping rectangles with holes: (count, height, width) uint8, none of them empty."""
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(
        masks, inputs.boxes(g, count, height, width, smallest=4).int().tolist(), strict=True
    ):
        mask[y1:y2, x1:x2] = (torch.rand(y2 - y1, x2 - x1, generator=g) < 0.8).to(torch.uint8)
        mask[y1, x1] = 1
    return masks


def _crowd_inputs(g):
    yield _masks(g, 5, 24, 40), _masks(g, 3, 24, 40), torch.tensor([False, False, False])
    yield _masks(g, 4, 24, 40), _masks(g, 3, 24, 40), torch.tensor([False, True, False])
    yield _masks(g, 3, 30, 20), _masks(g, 2, 30, 20), torch.tensor([True, True])
    yield _masks(g, 3, 30, 20), _masks(g, 1, 30, 20)[:0], torch.zeros(0, dtype=torch.bool)


def _crowd_like(detections, truth, crowd, *, rule="detection", turned=False, sums=False):
    d, t = detections.flatten(1).double(), truth.flatten(1).double()
    both = d @ t.T
    of_d, of_t = d.sum(dim=1)[:, None].expand_as(both), t.sum(dim=1).expand_as(both)
    union = of_d + of_t - (0 if sums else both)
    special = {"detection": of_d, "truth": of_t, "none": union}[rule]
    table = (both / torch.where(crowd, special, union)).float()
    return table.T if turned else table


def _crowd_loop(detections, truth, crowd):
    table = torch.zeros(len(detections), len(truth))
    for i, d in enumerate(detections.bool()):
        for j, t in enumerate(truth.bool()):
            whole = d if crowd[j] else d | t
            table[i, j] = (d & t).sum() / whole.sum()
    return table


def _crowd_official(detections, truth, crowd):
    codes = [
        [coco_mask.encode(np.asfortranarray(mask.numpy())) for mask in masks] for masks in (detections, truth)
    ]
    if not codes[1]:
        return torch.zeros(len(detections), 0)
    return torch.from_numpy(coco_mask.iou(*codes, crowd.tolist())).float()


CROWD_IOU = Exercise(
    name="crowd_iou",
    chapter=11,
    difficulty=2,
    minutes=10,
    stub='''
def crowd_iou(detections, truth, crowd):
    """The overlap of every detection with every object, as COCO counts it.

    detections: (D, H, W) uint8, truth: (G, H, W) uint8, masks of 0 and 1, none empty; G may be 0.
    crowd: (G,) bool. Against an object the overlap is intersection over union; against a crowd it is the
    part of the detection that lies inside of it.
    Returns (D, G) float32.
    """
'''.strip(),
    reference=_crowd_official,
    inputs=_crowd_inputs,
    others=(_crowd_like, _crowd_loop),
    mistakes=(
        planted("`crowd` is ignored", _crowd_like, rule="none"),
        planted(
            "against a crowd you divide by its area: divide by that of the detection",
            _crowd_like,
            rule="truth",
        ),
        planted("divides by the sum of both areas: the intersection counts once", _crowd_like, sums=True),
        planted("rows and columns are swapped: detections are rows", _crowd_like, turned=True),
    ),
)

# ---------------------------------------------------------------- match_coco


def _match_inputs(g):
    nobody = torch.zeros(3, dtype=torch.bool)
    yield torch.tensor([[0.6, 0.55, 0], [0.7, 0.1, 0], [0, 0.8, 0], [0, 0, 0.45]]), nobody, nobody, 0.5
    for _ in range(4):
        overlap = torch.rand(8, 5, generator=g)
        yield overlap, torch.zeros(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool), 0.5
    for _ in range(4):
        crowd = torch.rand(5, generator=g) < 0.3
        ignored = crowd | (torch.rand(5, generator=g) < 0.4)
        yield torch.rand(9, 5, generator=g), ignored, crowd, 0.4
    # A crowd that everybody fits best, an ignored object, and one that counts.
    ignored = torch.tensor([True, True, False])
    yield torch.tensor([[0.9, 0.8, 0.6], [0.9, 0.8, 0.7], [0.9, 0, 0]]), ignored, ignored & False, 0.5
    crowd = torch.tensor([True, False, False])
    yield torch.tensor([[0.9, 0.8, 0.6], [0.9, 0.8, 0.7], [0.9, 0.1, 0.5]]), ignored, crowd, 0.5
    yield torch.tensor([[0.5, 0.25]]), nobody[:2], nobody[:2], 0.5  # exactly the threshold
    yield torch.zeros(3, 0), nobody[:0], nobody[:0], 0.5


def _match_like(
    overlap, ignored, crowd, threshold, *,
    free_again=False, last=True, crowd_once=False, ignored_again=False, closed=True, first_fit=False,
    skip=False, own_best=False,
):  # fmt: skip
    taken: set[int] = set()
    owner = []
    for row in overlap.tolist():
        fits = [c for c, value in enumerate(row) if (value >= threshold if closed else value > threshold)]
        if own_best and row:
            fits = [c for c in fits if row[c] == max(row)]
        again = {
            c for c in range(len(row)) if (crowd[c] and not crowd_once) or (ignored_again and ignored[c])
        }
        fits = [c for c in fits if free_again or c not in taken or c in again]
        regular = [c for c in fits if not ignored[c]]
        if skip:
            fits = regular
        choice = (regular or fits) if last else fits
        best = -1 if not choice else choice[0] if first_fit else max(choice, key=lambda c: row[c])
        taken.add(best)
        owner.append(best)
    return torch.tensor(owner, dtype=torch.int64)


def _match_arrays(overlap, ignored, crowd, threshold):
    overlap = overlap.clone()
    owner = torch.full((len(overlap),), -1)
    for row in range(len(overlap) if overlap.shape[1] else 0):
        value = torch.where(overlap[row] >= threshold, overlap[row] + 2 * (~ignored), -1.0)
        if value.max() > 0:
            owner[row] = value.argmax()
            if not crowd[owner[row]]:
                overlap[row:, owner[row]] = -1  # taken
    return owner


MATCH_COCO = Exercise(
    name="match_coco",
    chapter=11,
    difficulty=4,
    minutes=30,
    stub='''
def match_coco(overlap, ignored, crowd, threshold):
    """Which object each detection of a picture takes, by COCO's rules.

    overlap: (D, G) float32, no two equal in a row except zeros; the rows come by falling score. ignored,
    crowd: (G,) bool, each crowd is ignored too. D and G may be 0.
    Row by row, a detection takes the object with the largest overlap among those that are free and reach
    `threshold` (equal counts); ignored objects only if no other fits. What is taken is not free any more,
    but for crowds.
    Returns (D,) int64: the column, -1 for none.
    """
'''.strip(),
    reference=_match_like,
    inputs=_match_inputs,
    others=(_match_arrays, lambda *arguments: _match_like(*arguments).tolist()),
    mistakes=(
        planted("an object is taken twice: only a crowd may be", _match_like, free_again=True),
        planted(
            "an ignored object is taken though another one fits: ignored ones come last",
            _match_like,
            last=False,
        ),
        planted("a crowd is taken once: any number of detections may take it", _match_like, crowd_once=True),
        planted("an ignored object that is no crowd is taken twice", _match_like, ignored_again=True),
        planted("an overlap of exactly the threshold is enough", _match_like, closed=False),
        planted("takes the first object that fits: the largest overlap counts", _match_like, first_fit=True),
        planted("ignored objects are never taken: they are, where nothing else fits", _match_like, skip=True),
        planted(
            "looks at each detection's best object alone: where it is taken, the next best may fit",
            _match_like,
            own_best=True,
        ),
    ),
)

EXERCISES = (CROWD_IOU, MATCH_COCO)
