"""Chapter 8: the mask head's upsampling, its targets, its loss and the map that is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision

from minimrcnn import losses, roi_ops
from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- deconvolve


def _deconvolve_inputs(g):
    yield inputs.signed(g, 2, 3, 2, 4), inputs.signed(g, 3, 3, 2, 2), inputs.signed(g, 3)
    yield inputs.signed(g, 1, 2, 3, 1), inputs.signed(g, 2, 2, 2, 2), inputs.signed(g, 2)
    yield inputs.signed(g, 3, 4, 1, 2), inputs.signed(g, 4, 2, 2, 2), inputs.signed(g, 2)  # other depth


def _deconvolve_like(
    x, weight, bias, *, turned=False, flipped=False, backwards=False, biased=True, tiled=False, spread=True
):
    if turned:
        weight = weight.transpose(0, 1)
    if flipped:
        weight = weight.flip(2, 3)
    if backwards:
        weight = weight.transpose(2, 3)
    if not spread:
        weight = weight.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 2, 2)
    blocks = torch.einsum("bchw,cdij->bdhiwj", x, weight)  # (B, D, H, 2, W, 2)
    if tiled:
        blocks = blocks.permute(0, 1, 3, 2, 5, 4)
    b, d, h, _, w, _ = blocks.shape
    out = blocks.reshape(b, d, 2 * h, 2 * w)
    return out + bias[:, None, None] if biased else out


def _deconvolve_loop(x, weight, bias):
    b, c, h, w = x.shape
    out = bias[None, :, None, None].repeat(b, 1, 2 * h, 2 * w)
    for i in range(h):
        for j in range(w):
            for channel in range(c):
                block = x[:, channel, i, j, None, None, None] * weight[channel]  # (B, D, 2, 2)
                out[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] += block
    return out


DECONVOLVE = Exercise(
    name="deconvolve",
    chapter=8,
    difficulty=2,
    minutes=15,
    stub='''
def deconvolve(x, weight, bias):
    """A transposed convolution with a 2x2 kernel and stride 2: each cell becomes a block of 2x2 cells.

    x: (B, C, H, W) float32. weight: (C, D, 2, 2), as nn.ConvTranspose2d has it: inputs first. bias: (D,).
    The cell in row i and column j of channel c adds x[:, c, i, j] * weight[c, d] to the block of rows
    2 * i and 2 * i + 1 and columns 2 * j and 2 * j + 1 of channel d; the bias is added once to each cell.
    Write it with tensors and loops; without a convolution of torch.
    Returns (B, D, 2 * H, 2 * W) float32.
    """
'''.strip(),
    reference=lambda x, weight, bias: F.conv_transpose2d(x, weight, bias, stride=2),
    inputs=_deconvolve_inputs,
    others=(_deconvolve_like, _deconvolve_loop),
    mistakes=(
        planted("the weight is read as (outputs, inputs): its first axis is the inputs", _deconvolve_like,
                turned=True),
        planted("the kernel is turned by 180 degrees: a transposed convolution writes it as it is",
                _deconvolve_like, flipped=True),
        planted("rows and columns of the kernel are swapped", _deconvolve_like, backwards=True),
        planted("the bias is missing", _deconvolve_like, biased=False),
        planted("the blocks lie in the wrong places: the four cells of a block must be neighbours",
                _deconvolve_like, tiled=True),
        planted("all four cells of a block are the same: each has its own weight", _deconvolve_like,
                spread=False),
    ),
    batched=(0,),
)  # fmt: skip

# ---------------------------------------------------------------- mask_target


def _blob(g, height, width):
    """A mask with a slanted edge and a hole: (height, width) float32 of 0 and 1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    slant = x + 0.4 * y > 0.35 * width
    hole = (x - 0.6 * width).abs() + (y - 0.5 * height).abs() < 0.15 * height
    return (slant & ~hole & (torch.rand(height, width, generator=g) > 0.03)).float()


def _target_inputs(g):
    mask = _blob(g, 40, 64)
    yield mask, inputs.boxes(g, 4, 40, 64, smallest=9), 7, True
    yield mask, inputs.boxes(g, 3, 40, 64, smallest=9), 5, False
    yield mask, torch.tensor([[3.3, 2.2, 59.1, 37.4], [10.0, 8.0, 24.0, 36.0]]), 14, True
    yield mask, torch.tensor([[-6.5, 10.2, 20.3, 52.0]]), 6, False  # over the border of the picture
    yield mask, torch.tensor([[20.2, 11.1, 24.9, 15.3]]), 8, True  # smaller than the grid
    yield mask, torch.zeros(0, 4), 4, True


def _target_like(
    mask, boxes, size, aligned, *,
    swapped=False, rounded=False, whole=False, binary=False, half="as asked", points=0, nearest=False,
):  # fmt: skip
    if whole:
        target = F.interpolate(mask[None, None], size=(size, size), mode="bilinear")[0]
        return target.expand(len(boxes), -1, -1)
    if rounded:
        boxes = boxes.round()
    if swapped:
        boxes = boxes[:, [1, 0, 3, 2]]
    aligned = {"as asked": aligned, "never": False, "always": True}[half]
    if nearest:
        share = (torch.arange(size) + 0.5) / size
        size_xy = boxes[:, 2:] - boxes[:, :2]
        x, y = ((boxes[:, k, None] + share * size_xy[:, k, None]).floor().long() for k in (0, 1))
        x, y = x.clamp(0, mask.shape[1] - 1), y.clamp(0, mask.shape[0] - 1)
        return mask[y[:, :, None], x[:, None, :]]
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    target = torchvision.ops.roi_align(mask[None, None], rois, size, 1.0, points, aligned)[:, 0]
    return (target >= 0.5).float() if binary else target


def _target_package(mask, boxes, size, aligned):
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    return roi_ops.roi_align(mask[None, None], rois, size, 1.0, 0, aligned)[:, 0]


MASK_TARGET = Exercise(
    name="mask_target",
    chapter=8,
    difficulty=2,
    minutes=15,
    part="mask_target",
    stub='''
def mask_target(mask, boxes, size, aligned):
    """What the mask head should answer in each of P boxes: the part of the mask inside, as a small grid.

    mask: (H, W) float32 of 0 and 1, one object, as large as the picture. boxes: (P, 4) float32 xyxy in
    pixels of that picture: the proposals that were matched to this object; P may be 0.
    The target is RoIAlign of the mask as a feature map with one channel, at one cell a pixel, with
    the adaptive sampling ratio (0: as many points a bin as it has pixels, rounded up).
    size: M, cells along each side. aligned: as in roi_align.
    Returns (P, M, M) float32, fractions from 0 to 1: the model cuts them at .5 if its convention is "binary".
    """
'''.strip(),
    reference=_target_like,
    inputs=_target_inputs,
    others=(_target_package,),
    mistakes=(
        planted("x and y of the boxes are swapped", _target_like, swapped=True),
        planted("the box is rounded to whole pixels: RoIAlign rounds nothing", _target_like, rounded=True),
        planted("the whole mask is resized: the target is the part inside of the box", _target_like,
                whole=True),
        planted("the fractions are cut at .5: give them as they are", _target_like, binary=True),
        planted("`aligned` is ignored: with True the corners are shifted by -0.5", _target_like,
                half="never"),
        planted("`aligned` is ignored: with False the corners are not shifted", _target_like,
                half="always"),
        planted("two points a side of a bin are not enough here: the sampling ratio is adaptive",
                _target_like, points=2),
        planted("each cell reads one pixel: it is the mean over all pixels of its bin", _target_like,
                nearest=True),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- mask_loss


def _loss_inputs(g):
    yield inputs.signed(g, 5, 4, 3, 3), torch.tensor([1, 3, 2, 3, 1]), inputs.uniform(g, 0, 1, 5, 3, 3)
    binary = (inputs.uniform(g, 0, 1, 3, 6, 6) > 0.6).float()
    yield 2 * inputs.signed(g, 3, 6, 6, 6), torch.tensor([5, 1, 4]), binary
    yield inputs.signed(g, 1, 3, 2, 2), torch.tensor([2]), torch.ones(1, 2, 2)
    yield 300 * inputs.signed(g, 2, 3, 2, 2), torch.tensor([2, 1]), torch.ones(2, 2, 2)  # sigmoid is 0 or 1
    yield inputs.signed(g, 0, 4, 3, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 3)


def _loss_like(
    logits, labels, targets, *,
    every=False, shift=0, reduce="mean", softmax=False, twice=False, squared=False, empty=True, side="all",
    first=False, stable=True,
):  # fmt: skip
    if not len(labels) and empty:
        return logits.sum() * 0
    rows = torch.arange(len(labels))
    if softmax:
        picture = torch.where(targets >= 0.5, labels[:, None, None], 0)
        return F.cross_entropy(logits, picture)
    chosen = logits[rows, 0 * labels if first else labels - shift]  # (P, M, M)
    goal = targets
    if every:
        chosen, goal = logits, torch.zeros_like(logits)
        goal[rows, labels] = targets
    if squared:
        return (chosen.sigmoid() - goal).square().mean()
    if not stable:
        p = chosen.sigmoid()
        loss = -(goal * p.log() + (1 - goal) * (1 - p).log())
    else:
        z = chosen.sigmoid() if twice else chosen
        loss = F.binary_cross_entropy_with_logits(z, goal, reduction="none")
    if side == "inside":
        return (loss * goal).mean()
    if reduce == "sum":
        return loss.sum()
    return loss.sum() / max(len(labels), 1) if reduce == "rois" else loss.mean()


def _loss_loop(logits, labels, targets):
    if not len(labels):
        return logits.sum() * 0
    terms = []
    for of_roi, label, target in zip(logits, labels.tolist(), targets, strict=True):
        z = of_roi[label]
        terms.append((F.softplus(z) - z * target).mean())
    return torch.stack(terms).mean()


def _loss_package(logits, labels, targets):
    valid = torch.ones(len(labels), dtype=torch.bool)
    return losses.mask_loss(logits, labels, targets, valid, torch.tensor(float(max(len(labels), 1))))


MASK_LOSS = Exercise(
    name="mask_loss",
    chapter=8,
    difficulty=2,
    minutes=15,
    part="mask_loss",
    stub='''
def mask_loss(logits, labels, targets):
    """L_mask: the mean binary cross-entropy of the map of each RoI's true class (Mask R-CNN, section 3).

    logits: (P, K, M, M) float32, one map a class, before the sigmoid; class 0 is background.
    labels: (P,) int64, the true class of each RoI, 1 to K - 1. targets: (P, M, M) float32, 0 to 1.
    The mean is over all P * M * M cells; the other K - 1 maps of a RoI take no part.
    Logits of several hundred must not give infinity or NaN. P may be 0: the loss is then 0.
    Returns a scalar tensor with a gradient in logits (also with P = 0: `logits.sum() * 0`).
    """
'''.strip(),
    reference=_loss_package,
    inputs=_loss_inputs,
    others=(_loss_like, _loss_loop),
    mistakes=(
        planted("all K maps are trained: only the map of the true class takes part", _loss_like, every=True),
        planted("reads the map of label - 1: class 0, the background, has a map too", _loss_like, shift=1),
        planted("reads the same map for every RoI: take the map of its own label", _loss_like, first=True),
        planted("a softmax over the classes: each map has a sigmoid of its own", _loss_like, softmax=True),
        planted("the sigmoid is applied twice", _loss_like, twice=True),
        planted("the squared error of the probabilities: L_mask is the cross-entropy", _loss_like,
                squared=True),
        planted("the sum over all cells: take the mean", _loss_like, reduce="sum"),
        planted("the mean over RoIs of the sum over cells: divide by M * M too", _loss_like, reduce="rois"),
        planted("cells outside of the object are left out: they count as well", _loss_like, side="inside"),
        planted("without a RoI the mean is NaN: the loss must be 0", _loss_like, empty=False),
        planted("a logit of several hundred gives infinity or NaN: use the form with logits", _loss_like,
                stable=False),
    ),
    gradient=(0,),
)  # fmt: skip

# ---------------------------------------------------------------- mask_loss_gradient


def _gradient_inputs(g):
    yield inputs.signed(g, 4, 3, 2, 2), torch.tensor([2, 1, 1, 2]), inputs.uniform(g, 0, 1, 4, 2, 2)
    yield inputs.signed(g, 2, 5, 3, 3), torch.tensor([4, 2]), (inputs.signed(g, 2, 3, 3) > 0).float()
    yield inputs.signed(g, 1, 2, 4, 4), torch.tensor([1]), torch.zeros(1, 4, 4)


def _gradient_like(
    logits, labels, targets, *, sign=1, cells=True, rois=True, others=False, slope=False, through=False
):
    p, m = len(labels), logits.shape[-1]
    gradient = torch.zeros_like(logits)
    for row, label in enumerate(labels.tolist()):
        probability = logits[row].sigmoid()
        if through:
            probability = logits[row].softmax(dim=0)
        goal = torch.zeros_like(probability)
        goal[label] = targets[row]
        error = probability - goal
        if slope:
            error = error * probability * (1 - probability)
        gradient[row] = error if others else gradient[row]
        gradient[row, label] = error[label]
    return sign * gradient / (m * m if cells else 1) / (p if rois else 1)


def _gradient_auto(logits, labels, targets):
    logits = logits.detach().clone().requires_grad_()
    rows = torch.arange(len(labels))
    F.binary_cross_entropy_with_logits(logits[rows, labels], targets).backward()
    return logits.grad


MASK_LOSS_GRADIENT = Exercise(
    name="mask_loss_gradient",
    chapter=8,
    difficulty=2,
    minutes=15,
    stub='''
def mask_loss_gradient(logits, labels, targets):
    """The gradient of mask_loss in the logits, by formula, not by autograd.

    logits: (P, K, M, M) float32. labels: (P,) int64, 1 to K - 1. targets: (P, M, M) float32, 0 to 1.
    P is at least 1. mask_loss is the mean binary cross-entropy, over all P * M * M cells, of the map of
    each RoI's label.
    Returns (P, K, M, M) float32: the derivative of that mean with respect to each logit.
    """
'''.strip(),
    reference=_gradient_auto,
    inputs=_gradient_inputs,
    others=(_gradient_like,),
    mistakes=(
        planted("the sign is wrong: a probability above its target has a positive gradient", _gradient_like,
                sign=-1),
        planted("the maps of the other classes have a gradient: it is 0 there", _gradient_like, others=True),
        planted("the mean is over P * M * M cells: divide by M * M too", _gradient_like, cells=False),
        planted("the mean is over P * M * M cells: divide by P too", _gradient_like, rois=False),
        planted("multiplied by p (1 - p), the sigmoid's slope: the logarithm's slope has cancelled it",
                _gradient_like, slope=True),
        planted("the probability is a softmax over the classes: it is a sigmoid of one logit",
                _gradient_like, through=True),
    ),
)  # fmt: skip

# ---------------------------------------------------------------- choose_masks


def _choose_inputs(g):
    yield inputs.signed(g, 6, 4, 3, 3), torch.tensor([2, 1, 3, 3, 1, 2])
    yield inputs.signed(g, 3, 2, 2, 2), torch.tensor([1, 1, 1])
    yield inputs.signed(g, 4, 1, 2, 2), torch.tensor([3, 1, 2, 5])  # class-agnostic
    yield inputs.signed(g, 0, 4, 3, 3), torch.zeros(0, dtype=torch.int64)


def _choose_like(logits, labels, *, sigmoid=True, softmax=False, shift=0, best=False, agnostic=True):
    if not len(logits):
        return logits[:, 0]
    k = logits.shape[1]
    index = labels if k > 1 else 0 * labels
    if best:
        index = logits.mean(dim=(2, 3)).argmax(dim=1)
    if k > 1:
        index = (index - shift) % k
    if not agnostic and k == 1:
        return logits[torch.arange(len(labels)), labels]
    rows = torch.arange(len(labels))
    chosen = (logits.softmax(dim=1) if softmax else logits)[rows, index]
    return chosen.sigmoid() if sigmoid and not softmax else chosen


def _choose_lists(logits, labels):
    if not len(labels):
        return []
    pick = [label if logits.shape[1] > 1 else 0 for label in labels.tolist()]
    return [1 / (1 + torch.exp(-maps[k])) for maps, k in zip(logits, pick, strict=True)]


CHOOSE_MASKS = Exercise(
    name="choose_masks",
    chapter=8,
    difficulty=1,
    minutes=10,
    stub='''
def choose_masks(logits, labels):
    """The mask of each detection: the probabilities of the one map that the box head's class names.

    logits: (N, K, M, M) float32, one map a class, class 0 is background; N may be 0.
    labels: (N,) int64, the class of each detection, 1 or more.
    K may also be 1: a class-agnostic head, whose one map serves every class.
    Returns (N, M, M) float32 from 0 to 1.
    """
'''.strip(),
    reference=_choose_like,
    inputs=_choose_inputs,
    others=(_choose_lists,),
    mistakes=(
        planted("gives logits: a mask is a probability, so apply the sigmoid", _choose_like, sigmoid=False),
        planted("a softmax over the classes: each map has a sigmoid of its own", _choose_like, softmax=True),
        planted("reads the map of label - 1: class 0, the background, has a map too", _choose_like, shift=1),
        planted("takes the map with the largest logits: the label says which one is meant", _choose_like,
                best=True),
        planted("with K = 1 there is one map for every class: the label must not index it", _choose_like,
                agnostic=False),
    ),
)  # fmt: skip

EXERCISES = (DECONVOLVE, MASK_TARGET, MASK_LOSS, MASK_LOSS_GRADIENT, CHOOSE_MASKS)
