"""Chapter 9: the terms of the loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from minimrcnn import losses
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- cross_entropy


def _classes(g, rows, kinds):
    return 3 * inputs.signed(g, rows, kinds), torch.randint(0, kinds, (rows,), generator=g)


def _cross_entropy_inputs(g):
    logits, _ = _classes(g, 7, 5)
    yield logits, torch.tensor([0, 3, 0, 1, 4, 2, 0])
    yield _classes(g, 12, 9)
    yield torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])
    yield torch.tensor([[1000.0, 998.0, -1000.0], [-500.0, 0.0, 500.0]]), torch.tensor([1, 0])
    yield torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


def _cross_entropy_like(
    logits, labels, *, reduce="mean", first=0, base=math.e, sign=-1, background=True, axis=1
):
    said = logits.log_softmax(dim=axis) / math.log(base)  # (R, K)
    of_truth = sign * said[torch.arange(len(labels)), labels - first]  # (R,)
    if not background:
        of_truth = of_truth[labels > 0]
    if reduce == "sum":
        return of_truth.sum()
    return of_truth.mean() / (logits.shape[1] if reduce == "all" else 1)


def _cross_entropy_loop(logits, labels):
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        largest = max(row)
        total += largest + math.log(sum(math.exp(z - largest) for z in row)) - row[label]
    return total / len(labels)


CROSS_ENTROPY = Exercise(
    name="cross_entropy",
    chapter=9,
    difficulty=2,
    minutes=15,
    stub='''
def cross_entropy(logits, labels):
    """L_cls: the mean over the RoIs of minus the logarithm of the true class's probability.

    logits: (R, K) float32, R at least 1; they may be as large as 1000 or as small as -1000, and the loss is
    a finite number all the same. labels: (R,) int64, 0 (background) to K - 1.
    Probabilities are the softmax of a row of logits. Returns a scalar.
    """
'''.strip(),
    reference=F.cross_entropy,
    inputs=_cross_entropy_inputs,
    others=(_cross_entropy_like, _cross_entropy_loop),
    mistakes=(
        planted("gives the sum over the RoIs: the mean is wanted", _cross_entropy_like, reduce="sum"),
        planted(
            "divides by R * K: a RoI has one true class, so divide by R", _cross_entropy_like, reduce="all"
        ),
        planted(
            "labels count from 0: column `label` is the class, not `label - 1`", _cross_entropy_like, first=1
        ),
        planted("takes another logarithm: the natural one is wanted", _cross_entropy_like, base=2),
        planted("the sign is missing: the loss is minus the logarithm", _cross_entropy_like, sign=1),
        planted(
            "leaves the background out: its RoIs count like all others", _cross_entropy_like, background=False
        ),
        planted(
            "takes the softmax over the RoIs: it goes over the classes of a row", _cross_entropy_like, axis=0
        ),
    ),
)

# ---------------------------------------------------------------- cross_entropy_gradient


def _gradient_inputs(g):
    yield _classes(g, 6, 4)
    yield _classes(g, 9, 3)
    yield torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2])
    yield torch.tensor([[60.0, -60.0, 0.0], [5.0, 5.0, 5.0]]), torch.tensor([0, 1])


def _gradient_like(
    logits, labels, *, divided=True, sign=1, taken=1.0, column=0, sigmoid=False, slope=False, true_only=False
):
    said = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
    truth = F.one_hot((labels - column) % logits.shape[1], logits.shape[1]).float()
    gradient = sign * (said - taken * truth)
    if slope:
        gradient = gradient * said * (1 - said)
    if true_only:
        gradient = gradient * truth
    return gradient / (len(labels) if divided else 1)


def _gradient_reference(logits, labels):
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(leaf, labels), leaf)[0]


def _gradient_loop(logits, labels):
    rows = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        weights = [math.exp(z - max(row)) for z in row]
        said = [w / sum(weights) for w in weights]
        rows.append([(p - (k == label)) / len(labels) for k, p in enumerate(said)])
    return rows


CROSS_ENTROPY_GRADIENT = Exercise(
    name="cross_entropy_gradient",
    chapter=9,
    difficulty=2,
    minutes=15,
    stub='''
def cross_entropy_gradient(logits, labels):
    """What L_cls pulls on: the derivative of the mean cross-entropy by each logit, without autograd.

    logits: (R, K) float32, R at least 1. labels: (R,) int64, 0 (background) to K - 1.
    Returns (R, K) float32: positive where the loss wants the logit smaller, negative where larger.
    """
'''.strip(),
    reference=_gradient_reference,
    inputs=_gradient_inputs,
    others=(_gradient_like, _gradient_loop),
    mistakes=(
        planted(
            "the gradient of the sum: the mean has one that is R times smaller", _gradient_like, divided=False
        ),
        planted("the sign is wrong: this is the way down, the gradient points up", _gradient_like, sign=-1),
        planted("the 1 of the true class is not taken off the softmax", _gradient_like, taken=0.0),
        planted("the 1 is taken off the wrong column: labels count from 0", _gradient_like, column=1),
        planted("takes a sigmoid of each logit: L_cls has one softmax a row", _gradient_like, sigmoid=True),
        planted(
            "multiplied by p (1 - p) once more: logarithm and softmax together leave p - y",
            _gradient_like,
            slope=True,
        ),
        planted(
            "only the true class is pulled on: the others are pushed down", _gradient_like, true_only=True
        ),
    ),
)

# ---------------------------------------------------------------- smooth_l1


def _smooth_inputs(g):
    yield 2 * inputs.signed(g, 5, 4), 1.0
    yield 0.3 * inputs.signed(g, 6, 4), 1 / 9
    yield inputs.signed(g, 3, 2, 4), 0.5
    yield torch.tensor([-2.0, -0.5, 0.0, 0.25, 0.5, 3.0]), 0.5  # the edge: the size of beta itself
    yield torch.tensor([-2.0, -0.01, 0.0, 0.3]), 0.0  # plain L1


def _smooth_like(
    difference, beta, *, half=True, divided=True, joined=True, signed=False, huber=False, flip=False
):
    size = difference if signed else difference.abs()
    if beta == 0:
        return size * 0 if huber else size
    square = (0.5 if half else 1.0) * difference * difference / (beta if divided else 1.0)
    line = size - 0.5 * beta if joined else size
    small = difference.abs() < beta
    loss = torch.where(~small if flip else small, square, line)
    return loss * beta if huber else loss


def _smooth_loop(difference, beta):
    values = []
    for x in difference.flatten().tolist():
        values.append(0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta)
    return torch.tensor(values).reshape(difference.shape)


SMOOTH_L1 = Exercise(
    name="smooth_l1",
    chapter=9,
    difficulty=2,
    minutes=15,
    stub='''
def smooth_l1(difference, beta):
    """Smooth L1 of each number: a parabola below beta, a line above, without a jump or a kink between.

    difference: (...) float32, any shape, signed. beta: 0 or more; 0 is plain L1.
    Where |x| is smaller than beta: x * x / (2 * beta). Elsewhere: |x| less what makes the two ends meet.
    Returns (...) float32, the loss of each number.
    """
'''.strip(),
    reference=losses.smooth_l1,
    inputs=_smooth_inputs,
    others=(
        _smooth_like,
        _smooth_loop,
        lambda difference, beta: F.smooth_l1_loss(
            difference, torch.zeros_like(difference), beta=beta, reduction="none"
        ),
    ),
    mistakes=(
        planted("the parabola is twice too high: the one half is missing", _smooth_like, half=False),
        planted("the parabola is not divided by beta", _smooth_like, divided=False),
        planted("jumps at beta: take half a beta off the line", _smooth_like, joined=False),
        planted("negative errors give negative losses: take the size first", _smooth_like, signed=True),
        planted(
            "this is Huber's loss, beta times smooth L1: its line has the slope beta, not 1",
            _smooth_like,
            huber=True,
        ),
        planted("the two branches are swapped: the parabola is for small errors", _smooth_like, flip=True),
    ),
)

# ---------------------------------------------------------------- box_head_loss


def _box_head_inputs(g):
    def case(rows, kinds, background, beta):
        labels = torch.randint(1, kinds, (rows,), generator=g)
        labels[torch.randperm(rows, generator=g)[:background]] = 0
        return inputs.signed(g, rows, kinds, 4), inputs.signed(g, rows, 4), labels, beta

    yield case(8, 5, 5, 1.0)
    yield case(12, 3, 7, 1 / 9)
    yield case(5, 4, 0, 0.5)
    yield case(6, 4, 6, 0.5)  # the edge: no positive
    yield case(4, 2, 3, 0.0)


def _box_head_like(deltas, targets, labels, beta, *, over="rows", keep="positives", column="true"):
    rows = torch.arange(len(labels))
    if column == "all":
        difference = deltas - targets[:, None]  # (R, K, 4)
        loss = losses.smooth_l1(difference, beta).sum(dim=(1, 2))
    else:
        said = deltas[rows, {"true": labels, "first": labels * 0, "previous": labels - 1}[column]]
        loss = losses.smooth_l1(said - targets, beta).sum(dim=1)  # (R,)
    positive = labels > 0
    if keep == "positives":
        loss = loss * positive
    count = {"rows": len(labels), "numbers": 4 * len(labels), "positives": int(positive.sum()), "one": 1}[
        over
    ]
    return loss.sum() / max(count, 1)


def _box_head_loop(deltas, targets, labels, beta):
    total = 0.0
    for row, label in enumerate(labels.tolist()):
        if label == 0:
            continue
        for said, wanted in zip(deltas[row, label].tolist(), targets[row].tolist(), strict=True):
            x = abs(said - wanted)
            total += 0.5 * x * x / beta if x < beta else x - 0.5 * beta
    return total / len(labels)


def _box_head_reference(deltas, targets, labels, beta):
    said = deltas[torch.arange(len(labels)), labels]  # (R, 4)
    return losses.box_loss(said, targets, labels > 0, beta, torch.tensor(float(len(labels))))


BOX_HEAD_LOSS = Exercise(
    name="box_head_loss",
    chapter=9,
    difficulty=3,
    minutes=20,
    stub='''
def box_head_loss(deltas, targets, labels, beta):
    """L_box: smooth L1 of the true class's four deltas, on positives only, divided by the number of RoIs.

    deltas: (R, K, 4) float32, four for each class, R at least 1. targets: (R, 4) float32, what `encode`
    wants. labels: (R,) int64; 0 is background, which has no box: its row of targets means nothing.
    beta: 0 or more, of smooth L1. R counts the background too. Returns a scalar, 0 without positives.
    """
'''.strip(),
    reference=_box_head_reference,
    inputs=_box_head_inputs,
    others=(_box_head_like, _box_head_loop),
    mistakes=(
        planted(
            "divides by the number of positives: by all RoIs, the background included",
            _box_head_like,
            over="positives",
        ),
        planted(
            "divides by 4 R: the four numbers of a box are summed, not averaged",
            _box_head_like,
            over="numbers",
        ),
        planted("gives the sum: it is to be divided by the number of RoIs", _box_head_like, over="one"),
        planted("the background counts too: it has no box to learn", _box_head_like, keep="all"),
        planted("all classes' deltas count: only those of the true class", _box_head_like, column="all"),
        planted(
            "takes the deltas of class 0 for every RoI: take those of its own class",
            _box_head_like,
            column="first",
        ),
        planted(
            "takes the deltas of class `label - 1`: class 0 has its four too",
            _box_head_like,
            column="previous",
        ),
    ),
)

EXERCISES = (CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT, SMOOTH_L1, BOX_HEAD_LOSS)
