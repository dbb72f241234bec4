"""Every part written as a student would, for one picture with loops, and lifted: the same answers."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from little import little_model, scene
from torchvision.models.detection.roi_heads import paste_masks_in_image

from minimrcnn import Parts, parts, per_image
from minimrcnn.lifting import targets_by_object

# -- the student's parts -------------------------------------------------------------------------------


def iou(a, b, plus_one):
    table = torch.zeros(len(a), len(b))
    for i, (ax1, ay1, ax2, ay2) in enumerate(a.tolist()):
        for j, (bx1, by1, bx2, by2) in enumerate(b.tolist()):
            w = max(min(ax2, bx2) - max(ax1, bx1) + plus_one, 0)
            h = max(min(ay2, by2) - max(ay1, by1) + plus_one, 0)
            sizes = [(x2 - x1 + plus_one) * (y2 - y1 + plus_one) for x1, y1, x2, y2 in (a[i], b[j])]
            union = float(sum(sizes)) - w * h
            table[i, j] = w * h / union if union > 0 else 0
    return table


def encode(boxes, anchors, weights, plus_one):
    deltas = torch.zeros_like(boxes)
    for i, (box, anchor) in enumerate(zip(boxes.tolist(), anchors.tolist(), strict=True)):
        for axis in (0, 1):
            size, other = box[axis + 2] - box[axis] + plus_one, anchor[axis + 2] - anchor[axis] + plus_one
            if size > 0 and other > 0:
                shift = (box[axis] + size / 2 - anchor[axis] - other / 2) / other
                deltas[i, axis], deltas[i, axis + 2] = (
                    weights[axis] * shift,
                    weights[axis + 2] * math.log(size / other),
                )
    return deltas


def decode(deltas, anchors, weights, plus_one):
    boxes = torch.zeros_like(deltas)
    for i, anchor in enumerate(anchors):
        for axis in (0, 1):
            size = anchor[axis + 2] - anchor[axis] + plus_one
            centre = anchor[axis] + size / 2 + deltas[i, axis] / weights[axis] * size
            size = size * torch.exp((deltas[i, axis + 2] / weights[axis + 2]).clamp(max=math.log(1000 / 16)))
            boxes[i, axis], boxes[i, axis + 2] = centre - size / 2, centre + size / 2 - plus_one
    return boxes


def match(overlap, high, low, keep_best):
    matched = torch.full((overlap.shape[1],), -2)
    for n in range(overlap.shape[1]):
        column = overlap[:, n]
        best = int(column.argmax())
        if column[best] < low:
            matched[n] = -1
        if column[best] >= high:
            matched[n] = best
        if keep_best and any(column[g] == overlap[g].max() > 0 for g in range(len(overlap))):
            matched[n] = best
    return matched


def sample(matched, random, number, positive_fraction):
    order = sorted(range(len(matched)), key=lambda n: -float(random[n]))
    positives = [n for n in order if matched[n] >= 0][: int(number * positive_fraction)]
    negatives = [n for n in order if matched[n] == -1][: number - len(positives)]
    return torch.tensor(positives, dtype=torch.int64), torch.tensor(negatives, dtype=torch.int64)


def nms(boxes, scores, threshold):
    overlap = iou(boxes, boxes, 0)
    rest, kept = sorted(range(len(boxes)), key=lambda n: -float(scores[n])), []
    while rest:
        kept.append(rest[0])
        rest = [n for n in rest[1:] if overlap[rest[0], n] <= threshold]
    return torch.tensor(kept, dtype=torch.int64)


def assign_levels(boxes, levels, canonical_scale, epsilon, plus_one):
    found = []
    for x1, y1, x2, y2 in boxes.tolist():
        area = max((x2 - x1 + plus_one) * (y2 - y1 + plus_one), 1e-12)
        level = math.floor(4 + math.log2(math.sqrt(area) / canonical_scale) + epsilon[1])
        found.append(min(max(level, 2), levels + 1) - 2)
    return torch.tensor(found, dtype=torch.int64)


def bilinear(feature, y, x):
    """The value of a map (C, H, W) at one point."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(len(feature), dtype=feature.dtype)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    below, right = min(i + 1, height - 1), min(j + 1, width - 1)
    top = feature[:, i, j] * (1 - (x - j)) + feature[:, i, right] * (x - j)
    bottom = feature[:, below, j] * (1 - (x - j)) + feature[:, below, right] * (x - j)
    return top * (1 - (y - i)) + bottom * (y - i)


def roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    crops = []
    for batch, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * spatial_scale - 0.5 * aligned for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        for i in range(output_size):
            for j in range(output_size):
                points = [
                    bilinear(
                        features[int(batch)],
                        y1 + (i + (p + 0.5) / sampling_ratio) * h / output_size,
                        x1 + (j + (q + 0.5) / sampling_ratio) * w / output_size,
                    )
                    for p in range(sampling_ratio)
                    for q in range(sampling_ratio)
                ]
                crops.append(torch.stack(points).mean(dim=0))
    if not crops:
        return features.new_zeros(0, features.shape[1], output_size, output_size)
    return torch.stack(crops).view(len(rois), output_size, output_size, -1).permute(0, 3, 1, 2)


def mask_target(mask, boxes, size, aligned):
    targets = torch.zeros(len(boxes), size, size)
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        shift = 0.5 * aligned
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        rows, columns = math.ceil(h / size), math.ceil(w / size)
        ys = [y1 - shift + (i + (p + 0.5) / rows) * h / size for i in range(size) for p in range(rows)]
        xs = [x1 - shift + (j + (q + 0.5) / columns) * w / size for j in range(size) for q in range(columns)]
        values = torch.stack([sample_row(mask, y, xs) for y in ys])  # (size * rows, size * columns)
        targets[n] = values.view(size, rows, size, columns).mean(dim=(1, 3))
    return targets


def sample_row(mask, y, xs):
    """Values of a mask (H, W) at one height and several places."""
    height, width = mask.shape
    if not -1 <= y <= height:
        return torch.zeros(len(xs))
    y = min(max(y, 0), height - 1)
    i = int(y)
    row = mask[i] * (1 - (y - i)) + mask[min(i + 1, height - 1)] * (y - i)
    x = torch.tensor(xs)
    inside, x = (x >= -1) & (x <= width), x.clamp(0, width - 1)
    j = x.long()
    return (row[j] * (1 - (x - j)) + row[(j + 1).clamp(max=width - 1)] * (x - j)) * inside


def mask_loss(logits, labels, targets):
    terms = [F.binary_cross_entropy_with_logits(logits[p, labels[p]], targets[p]) for p in range(len(labels))]
    return torch.stack(terms).mean()


def paste(grids, boxes, height, width, how):
    assert how == "integer"
    return paste_masks_in_image(grids[:, None], boxes, (height, width))[:, 0]


STUDENT = {f.name: globals()[f.name] for f in fields(Parts)}

# -- comparisons ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return run(Parts())


def run(chosen: Parts):
    """Losses with gradients, and detections, on pictures of which one has no objects."""
    images, targets = scene(((96, 120), (80, 70), (64, 64)), (3, 2, 0))
    # Few and small: the student's loops take seconds as it is.
    counts = {"rpn_pre_nms": (15, 10), "rpn_post_nms_train": 12, "rpn_post_nms_test": 8, "roi_samples": 12}
    sizes = {"anchor_sizes": (24, 40, 60, 90, 120), "box_pool": 3, "mask_pool": 4, "detections": 4}
    model = little_model(parts=chosen, **counts, **sizes)
    output = model.run(images, targets, losses=True, detections=True, key=3)
    sum(output.losses.values()).backward()
    return output, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", list(STUDENT))
def test_a_students_part_gives_the_same(name, default):
    ours, gradients = run(replace(Parts(), **{name: per_image(name, STUDENT[name])}))
    wanted, wanted_gradients = default
    for term, loss in wanted.losses.items():
        assert ours.losses[term].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6), term
    for mine, theirs in zip(ours.detections, wanted.detections, strict=True):
        assert len(theirs["boxes"]) > 0
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-3 if key == "boxes" else 1e-4)
    for parameter, gradient in wanted_gradients.items():
        if gradient is not None:
            error = float((gradients[parameter] - gradient).abs().max())
            assert error <= 1e-3 * float(gradient.abs().max()) + 1e-6, parameter


@pytest.mark.parametrize("name", list(STUDENT))
def test_a_students_part_is_what_runs(name):
    def broken(*arguments, **more):
        raise RuntimeError("the student's part ran")

    with pytest.raises(RuntimeError, match="the student's part ran"):
        run(replace(Parts(), **{name: per_image(name, broken)}))


def test_an_unknown_part_is_an_error_that_names_them_all():
    with pytest.raises(ValueError, match=r"no part 'roi_aligne'.*roi_align, mask_target"):
        per_image("roi_aligne", roi_align)


def test_the_table_names_exactly_the_parts():
    lines = parts.__doc__.split("    part  ")[1].split("Tensor contracts")[0].splitlines()[1:]
    named = [m[1] for line in lines if (m := re.match(r"    (\w+) ", line))]
    assert named == [field.name for field in fields(Parts)]


def test_sample_of_nothing_is_empty_but_keeps_its_shape():
    lifted = per_image("sample", sample)
    chosen = lifted(torch.full((2, 5), -2), torch.rand(2, 5), 4, 0.5)
    assert chosen.index.shape == (2, 4) and not bool(chosen.valid.any())


def test_broadcast_of_batches():
    lifted = per_image("iou", iou)
    a = torch.tensor([[[0.0, 0, 4, 4]], [[0, 0, 2, 2]]])  # (2, 1, 4)
    b = torch.tensor([[0.0, 0, 4, 4], [2, 2, 4, 4]])  # (2, 4), for both pictures
    assert lifted(a, b, 0).tolist() == [[[1, 0.25]], [[0.25, 0]]]


def test_lifted_mask_loss_without_positives_has_a_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing = torch.zeros(2, dtype=torch.bool)
    loss = per_image("mask_loss", mask_loss)(
        logits, torch.ones(2, dtype=torch.int64), torch.zeros(2, 4, 4), nothing, torch.tensor(1.0)
    )
    loss.backward()
    assert loss.item() == 0 and not bool(logits.grad.any())


def test_targets_by_object_is_the_lift_of_mask_target():
    assert per_image("mask_target", mask_target).__qualname__ == targets_by_object(mask_target).__qualname__
