"""Chapter 7: classes for proposals, the two layers, the deltas of a class, and the way to detections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision

from minimrcnn import boxes as box_ops
from minimrcnn import matching
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

WEIGHTS = (10.0, 10.0, 5.0, 5.0)

# ---------------------------------------------------------------- label_rois


def _label_inputs(g):
    truth = torch.tensor([[4.0, 6, 34, 40], [10, 4, 44, 36], [60, 20, 90, 50]])
    labels = torch.tensor([3, 5, 2])
    near = truth[[0, 1, 1, 2]] + inputs.uniform(g, -3, 3, 4, 4)
    proposals = torch.cat([inputs.boxes(g, 6, 60, 100), near])[torch.randperm(10, generator=g)]
    yield proposals, truth, labels, 0.5
    yield proposals, truth, labels, 0.3
    edge = torch.tensor([[0.0, 0, 2, 1], [0, 0, 3, 1]])
    yield edge, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([4]), 0.5  # an IoU of exactly .5
    yield proposals[:0], truth, labels, 0.5
    yield proposals[:4], truth[:0], labels[:0], 0.5  # a picture without objects


def _label_like(
    proposals, truth, labels, threshold, *,
    added=True, first=False, closed=True, background=0, rows=False, best=True, cut=True,
):  # fmt: skip
    boxes = proposals
    if added:
        boxes = torch.cat([truth, proposals] if first else [proposals, truth])
    if not len(truth):
        return boxes, torch.full((len(boxes),), background)
    overlap = box_ops.iou(truth, boxes)  # (G, N)
    value, index = overlap.max(dim=0)
    hit = value >= threshold if closed else value > threshold
    if not best:
        index = (overlap >= threshold).int().argmax(dim=0)  # the first that is large enough
    chosen = index if rows else labels[index]
    return boxes, torch.where(hit, chosen, background) if cut else chosen


def _label_loop(proposals, truth, labels, threshold):
    boxes, classes = [*proposals, *truth], []
    for box in boxes:
        overlap = [float(box_ops.iou(box[None], one[None])) for one in truth]
        hit = bool(overlap) and max(overlap) >= threshold
        classes.append(int(labels[overlap.index(max(overlap))]) if hit else 0)
    return torch.stack(boxes), classes


def _label_package(proposals, truth, labels, threshold):
    boxes = torch.cat([proposals, truth])
    if not len(truth):
        return boxes, torch.zeros(len(boxes), dtype=torch.int64)
    matched = matching.match(box_ops.iou(truth, boxes), threshold, threshold, False)
    return boxes, torch.where(matched >= 0, labels[matched.clamp(min=0)], 0)


LABEL_ROIS = Exercise(
    name="label_rois",
    chapter=7,
    difficulty=2,
    minutes=15,
    stub='''
def label_rois(proposals, truth, labels, threshold):
    """The candidates of the second stage, and the class that each should be given.

    proposals: (K, 4) float32, xyxy in pixels; K may be 0. truth: (G, 4), the objects' boxes; G may be 0.
    labels: (G,) int64, the objects' classes, 1 and more.
    The candidates are the proposals, then the objects' own boxes. A candidate goes to the object with which
    its IoU is largest; if that IoU is at least `threshold` it gets that object's class, else 0.
    Returns two tensors: the candidates (K + G, 4) float32 and their classes (K + G,) int64.
    """
'''.strip(),
    reference=_label_package,
    inputs=_label_inputs,
    others=(_label_like, _label_loop),
    mistakes=(
        planted("the objects' own boxes are not among the candidates", _label_like, added=False),
        planted("the objects' boxes come after the proposals", _label_like, first=True),
        planted("an IoU of exactly the threshold is a match", _label_like, closed=False),
        planted("the background is class 0 here; -1 is what `match` says", _label_like, background=-1),
        planted("gives the row of the object: give its class, labels[row]", _label_like, rows=True),
        planted("takes the first object above the threshold: take the one with the largest IoU",
                _label_like, best=False),
        planted("the threshold is ignored: a candidate that fits no object is background", _label_like,
                cut=False),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- two_mlp


def _mlp_inputs(g):
    for r, c, p, h in ((3, 2, 3, 12), (1, 3, 2, 7), (5, 4, 3, 9)):
        d = c * p * p
        first = inputs.signed(g, r, c, p, p), inputs.signed(g, h, d), inputs.signed(g, h)
        yield *first, inputs.signed(g, h, h), inputs.signed(g, h)


def _mlp_like(
    crops, w6, b6, w7, b7, *, channels_last=False, columns=False, relu=(True, True), bias=True, turned=False
):
    if channels_last:
        crops = crops.permute(0, 2, 3, 1)
    if columns:
        crops = crops.transpose(2, 3)
    x = crops.flatten(1)
    x = x @ w6.T + (b6 if bias else 0)
    x = x.clamp(min=0) if relu[0] else x
    x = x @ (w7 if turned else w7.T) + (b7 if bias else 0)
    return x.clamp(min=0) if relu[1] else x


TWO_MLP = Exercise(
    name="two_mlp",
    chapter=7,
    difficulty=1,
    minutes=10,
    stub='''
def two_mlp(crops, w6, b6, w7, b7):
    """fc6 and fc7, the two fully connected layers of the box head, each followed by a ReLU.

    crops: (R, C, P, P) float32. A crop is flattened channel by channel, each row by row.
    w6: (H, C * P * P), b6: (H,), w7: (H, H), b7: (H,), as nn.Linear has them: one row an output.
    Returns (R, H) float32.
    """
'''.strip(),
    reference=lambda crops, w6, b6, w7, b7: F.linear(
        F.linear(crops.flatten(1), w6, b6).relu(), w7, b7
    ).relu(),
    inputs=_mlp_inputs,
    others=(
        _mlp_like,
        lambda crops, w6, b6, w7, b7: [
            (w7 @ (w6 @ crop.reshape(-1) + b6).clamp(min=0) + b7).clamp(min=0) for crop in crops
        ],
    ),
    mistakes=(
        planted("the channels vary fastest: flatten channel by channel", _mlp_like, channels_last=True),
        planted("each channel is flattened column by column: go row by row", _mlp_like, columns=True),
        planted("the ReLU between the layers is missing: two linear layers are one", _mlp_like,
                relu=(False, True)),
        planted("the ReLU after the second layer is missing", _mlp_like, relu=(True, False)),
        planted("the biases are missing", _mlp_like, bias=False),
        planted("the weight of fc7 is transposed: it has one row an output", _mlp_like, turned=True),
    ),
    batched=(0,),
    tolerance=1e-3,
)  # fmt: skip

# ---------------------------------------------------------------- class_deltas


def _deltas_inputs(g):
    yield inputs.signed(g, 5, 16), torch.tensor([2, 0, 3, 1, 2])
    yield inputs.signed(g, 2, 36), torch.tensor([8, 5])
    yield inputs.signed(g, 0, 12), torch.zeros(0, dtype=torch.int64)


def _deltas_like(deltas, classes, *, four_first=False, shift=0, same=False, strided=False):
    k = deltas.shape[1] // 4
    if four_first:
        table = deltas.reshape(len(deltas), 4, k).transpose(1, 2)
    else:
        table = deltas.reshape(len(deltas), k, 4)
    rows = torch.arange(len(deltas))
    if strided:
        start = classes[:, None] + torch.arange(4)
        return deltas.gather(1, start)
    index = 0 * classes + 1 if same else (classes - shift) % k
    return table[rows, index]


CLASS_DELTAS = Exercise(
    name="class_deltas",
    chapter=7,
    difficulty=1,
    minutes=10,
    stub='''
def class_deltas(deltas, classes):
    """The four deltas of each RoI's class, out of those of all classes.

    deltas: (R, K * 4) float32, as the layer bbox_pred gives them: columns 4 * k to 4 * k + 3 hold
    dx, dy, dw, dh of class k; class 0 is the background. R may be 0.
    classes: (R,) int64, 0 to K - 1.
    Returns (R, 4) float32.
    """
'''.strip(),
    reference=_deltas_like,
    inputs=_deltas_inputs,
    others=(
        lambda deltas, classes: [
            row[4 * k : 4 * k + 4] for row, k in zip(deltas, classes.tolist(), strict=True)
        ],
        lambda deltas, classes: deltas.gather(1, 4 * classes[:, None] + torch.arange(4)),
    ),
    mistakes=(
        planted("the columns are read as (4, K): the four deltas of one class lie side by side",
                _deltas_like, four_first=True),
        planted("reads class - 1: the background has four columns too", _deltas_like, shift=1),
        planted("reads the same class for every RoI", _deltas_like, same=True),
        planted("begins at column k: class k begins at column 4 * k", _deltas_like, strided=True),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- nms_by_class


def _by_class_inputs(g):
    centres = inputs.boxes(g, 3, 60, 100, smallest=20)
    boxes = centres.repeat(6, 1) + inputs.uniform(g, -3, 3, 18, 4)
    labels = torch.arange(18).remainder(4)[torch.randperm(18, generator=g)] + 1
    yield boxes, inputs.scores(g, 18), labels, 0.5
    yield boxes, inputs.scores(g, 18), labels * 9, 0.3
    apart = boxes[:9] - boxes[:9].max() - 1  # corners below 0; moved by max + 1 they lie where the others do
    yield torch.cat([boxes[:9], apart]), inputs.scores(g, 18), torch.tensor([1] * 9 + [2] * 9), 0.5
    yield boxes, inputs.scores(g, 18), torch.ones(18, dtype=torch.int64), 0.5
    yield boxes[:0], torch.zeros(0), labels[:0], 0.5


def _by_class_like(
    boxes, scores, labels, threshold, *, offset="right", by_class=False, local=False, worst=False
):
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64)
    if by_class or local:
        parts = []
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            kept = torchvision.ops.nms(boxes[rows], scores[rows], threshold)
            parts.append(kept if local else rows[kept])
        return torch.cat(parts)
    span, top = float(boxes.max() - boxes.min()), float(boxes.max())
    step = {"none": 0.0, "one": 1.0, "largest": top + 1, "right": span + 1}[offset]
    kept = torchvision.ops.nms(boxes + step * labels[:, None], scores, threshold)
    return kept.sort().values if worst else kept


def _by_class_loop(boxes, scores, labels, threshold):
    kept: list[int] = []
    for row in scores.argsort(descending=True).tolist():
        rivals = [k for k in kept if labels[k] == labels[row]]
        if all(box_ops.iou(boxes[row : row + 1], boxes[k : k + 1]).item() <= threshold for k in rivals):
            kept.append(row)
    return kept


NMS_BY_CLASS = Exercise(
    name="nms_by_class",
    chapter=7,
    difficulty=2,
    minutes=15,
    stub='''
def nms_by_class(boxes, scores, labels, threshold):
    """NMS in which only boxes of the same class suppress one another.

    boxes: (N, 4) float32, xyxy in pixels; corners may be negative; N may be 0. scores: (N,), all different.
    labels: (N,) int64. threshold: a box goes if its IoU with a better one of its class that stays is larger.
    `nms(boxes, scores, threshold)`, which knows no classes, may be called; once is enough.
    Returns (M,) int64: the rows of the boxes that stay, by falling score over all classes.
    """
'''.strip(),
    reference=_by_class_like,
    inputs=_by_class_inputs,
    others=(_by_class_loop,),
    mistakes=(
        planted("boxes of different classes suppress one another", _by_class_like, offset="none"),
        planted("a step of one pixel a class is too little: boxes of other classes still overlap",
                _by_class_like, offset="one"),
        planted("where corners are negative the classes still meet: the step must be larger than max - min",
                _by_class_like, offset="largest"),
        planted("the rows come class by class: sort them by score", _by_class_like, by_class=True),
        planted("gives the rows within a class: give those of `boxes`", _by_class_like, local=True),
        planted("the rows must come by falling score", _by_class_like, worst=True),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- detect_boxes


def _detect_inputs(g):
    for count, classes, number in ((12, 4, 100), (10, 3, 4)):
        proposals = inputs.boxes(g, count // 2, 60, 90, smallest=20).repeat(2, 1)
        proposals = proposals + inputs.uniform(g, -4, 4, *proposals.shape)
        probabilities = (1.5 * inputs.signed(g, count, classes)).softmax(dim=1)
        deltas = inputs.uniform(g, -1.5, 1.5, count, classes, 4)
        yield proposals, probabilities, deltas, 60, 90, 0.1, 0.5, number
    wide = inputs.boxes(g, 8, 60, 90, smallest=30) + inputs.uniform(g, -25, 25, 8, 1)  # over the border
    shares = (inputs.signed(g, 8, 3)).softmax(dim=1)
    yield wide, shares, 0.5 * inputs.signed(g, 8, 3, 4), 60, 90, 0.05, 0.3, 50
    tied = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.625, 0.25]])
    apart = torch.tensor([[5.0, 5, 25, 25], [40.0, 10, 70, 50]])
    yield apart, tied, torch.zeros(2, 3, 4), 60, 90, 0.25, 0.5, 10  # scores of exactly the threshold
    yield apart, torch.tensor([[1.0, 0, 0], [1, 0, 0]]), torch.zeros(2, 3, 4), 60, 90, 0.05, 0.5, 10


def _detect_like(
    proposals, probabilities, deltas, height, width, score_threshold, nms_threshold, number, *,
    background=False, weights=WEIGHTS, cut=True, closed=False, agnostic=False, best=False, top=True,
    shift=0, suppress=True, swapped=False,
):  # fmt: skip
    n, k = probabilities.shape
    first = 0 if background else 1
    row = torch.arange(n)[:, None].expand(n, k)[:, first:].reshape(-1)
    label = torch.arange(k).expand(n, k)[:, first:].reshape(-1)
    score = probabilities[:, first:].reshape(-1)
    keep = score >= score_threshold if closed else score > score_threshold
    if best:
        keep = keep & (probabilities.argmax(dim=1)[row] == label)
    row, label, score = row[keep], label[keep], score[keep]
    boxes = box_ops.decode(deltas[row, label], proposals[row], weights)
    if cut:
        size = (width, height) if swapped else (height, width)
        boxes = box_ops.clip(boxes[None], torch.tensor([size]))[0]
    stay = score.argsort(descending=True)
    if suppress:
        stay = torchvision.ops.batched_nms(boxes, score, 0 * label if agnostic else label, nms_threshold)
    stay = stay[:number] if top else stay
    return boxes[stay], score[stay], label[stay] - shift


def _detect_loop(proposals, probabilities, deltas, height, width, score_threshold, nms_threshold, number):
    found = []
    for i in range(len(proposals)):
        for k in range(1, probabilities.shape[1]):
            if probabilities[i, k] > score_threshold:
                x1, y1, x2, y2 = box_ops.decode(deltas[i, k][None], proposals[i][None], WEIGHTS)[0].tolist()
                box = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
                found.append((float(probabilities[i, k]), k, torch.tensor(box)))
    found.sort(key=lambda one: -one[0])
    kept: list[tuple] = []
    for score, k, box in found:
        if all(c != k or box_ops.iou(box[None], b[None]).item() <= nms_threshold for _, c, b in kept):
            kept.append((score, k, box))
    kept = kept[:number]
    boxes = torch.stack([box for _, _, box in kept]) if kept else torch.zeros(0, 4)
    labels = torch.tensor([k for _, k, _ in kept], dtype=torch.int64)
    return boxes, torch.tensor([s for s, _, _ in kept]), labels


DETECT_BOXES = Exercise(
    name="detect_boxes",
    chapter=7,
    difficulty=4,
    minutes=30,
    stub='''
def detect_boxes(proposals, probabilities, deltas, height, width, score_threshold, nms_threshold, number):
    """From the box head's answers to the detections of one picture.

    proposals: (R, 4) float32, xyxy in pixels. probabilities: (R, K) float32, after the softmax; class 0 is
    the background. deltas: (R, K, 4) float32, to be decoded with the weights (10, 10, 5, 5).
    Each proposal is a candidate for each class but the background, with a box of its own for each:
    keep the pairs with a probability larger than score_threshold; decode; cut the boxes to the picture
    (0 to width, 0 to height); NMS within each class at nms_threshold; the `number` best of all classes.
    Returns boxes (D, 4) float32, scores (D,) float32, labels (D,) int64, by falling score; D may be 0.
    """
'''.strip(),
    reference=_detect_like,
    inputs=_detect_inputs,
    canonical=lambda found: _in_order(*found),
    others=(_detect_loop,),
    mistakes=(
        planted("the background is taken for a class: leave column 0 out", _detect_like, background=True),
        planted("the weights are left out: the deltas are divided by (10, 10, 5, 5)", _detect_like,
                weights=(1.0, 1.0, 1.0, 1.0)),
        planted("the boxes are not cut to the picture", _detect_like, cut=False),
        planted("height and width are swapped: x goes to width, y to height", _detect_like, swapped=True),
        planted("a score of exactly the threshold does not count", _detect_like, closed=True),
        planted("boxes of different classes suppress one another: NMS goes class by class", _detect_like,
                agnostic=True),
        planted("only the best class of a proposal is a candidate: each class above the threshold is",
                _detect_like, best=True),
        planted("gives more than `number` detections", _detect_like, top=False),
        planted("the labels are one too low: class 1 is the first after the background", _detect_like,
                shift=1),
        planted("the NMS is missing", _detect_like, suppress=False),
    ),
)  # fmt: skip


def _in_order(boxes, scores, labels):
    """Equal scores may come in any order: by label there, and by their boxes."""
    rows = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), int(labels[i]), boxes[i].tolist()))
    rows = torch.tensor(rows, dtype=torch.int64)
    return boxes[rows], scores[rows], labels[rows]


EXERCISES = (LABEL_ROIS, TWO_MLP, CLASS_DELTAS, NMS_BY_CLASS, DETECT_BOXES)
