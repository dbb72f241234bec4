"""The exercises of the course: each check accepts what is right and names what is wrong."""

from __future__ import annotations

import ast
import inspect
import math
import re
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
import torchvision

from minimrcnn import Parts, boxes
from minimrcnn.classroom import auditing
from minimrcnn.classroom.auditing import audit, stub_function, table
from minimrcnn.classroom.chapters import all_exercises, of_chapter
from minimrcnn.classroom.chapters.ch05_2_roi_align import _align_like
from minimrcnn.classroom.diagnosis import verdict
from minimrcnn.classroom.exercise import planted
from minimrcnn.parts import NEEDS_GRADIENT

EXERCISES = list(all_exercises().values())


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_check_tells_right_from_wrong(exercise):
    result = audit(exercise)
    assert result.problems == []
    assert result.rights >= 2 and result.mistakes >= 2


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_what_the_student_reads(exercise):
    assert 1 <= exercise.difficulty <= 5 and exercise.minutes > 0
    function = stub_function(exercise)
    assert inspect.getdoc(function) and "eturns" in inspect.getdoc(function)
    arguments = [p.name for p in inspect.signature(function).parameters.values()]
    assert len(exercise.cases()[0]) == len(arguments)
    for name in arguments:
        assert re.search(rf"\b{name}\b", function.__doc__), f"{name} is not explained"
    assert max(len(line) for line in exercise.stub.splitlines()) <= 110
    assert len(ast.parse(exercise.blank).body) == 1
    for mistake in exercise.mistakes:
        assert "\n" not in mistake.message and len(mistake.message) < 140


def test_the_parts_have_exercises_with_their_signatures():
    named = {field.name for field in fields(Parts)}
    by_part = {e.part: e for e in EXERCISES if e.part}
    assert len(by_part) == sum(bool(e.part) for e in EXERCISES) and set(by_part) <= named
    from minimrcnn import parts

    for part, exercise in by_part.items():
        line = re.search(rf"^    {part} +(.*)", parts.__doc__, re.MULTILINE)[1]
        start = parts.__doc__.index(line)
        listed = parts.__doc__[start : start + len(line) + 80]  # arguments may go on in the next line
        for name in inspect.signature(stub_function(exercise)).parameters:
            assert name in listed, f"{part}: {name}"


def test_the_parts_that_training_goes_through_are_checked_for_a_gradient():
    assert {e.part for e in EXERCISES if e.gradient} == set(NEEDS_GRADIENT)
    for exercise in EXERCISES:
        if exercise.gradient:  # the student is told
            assert exercise.gradient == (0,) and "gradient in" in exercise.stub


def test_numpy_reads_a_map_rightly_and_hides_its_gradient():
    """What the mistakes of roi_align are made of is right without a mistake."""
    align = all_exercises()["roi_align"]
    assert verdict(replace(align, gradient=()), _align_like) == "ok"
    assert verdict(align, _align_like).startswith(
        "right numbers, but no gradient reaches `features`: raises "
    )


def test_chapters_in_order():
    assert [e.chapter for e in EXERCISES] == sorted(e.chapter for e in EXERCISES)
    assert [e.name for e in of_chapter(3)] == ["iou", "encode", "decode", "grid_anchors", "match", "sample"]
    assert of_chapter(99) == []


def test_an_audit_notices_a_check_that_is_too_weak():
    exercise = of_chapter(4)[0]
    same = planted("never said", exercise.reference)
    weak = replace(exercise, mistakes=(same,), others=())
    problems = " ".join(audit(weak).problems)
    assert "'ok', not 'never said'" in problems
    assert "no other right answer" in problems and "1 mistakes are planted, 2 must be" in problems
    assert audit(weak).rejected == audit(weak).mistakes - 1
    wide = replace(exercise, groups=lambda output, anchors: {"all": torch.ones(7)})
    assert "the group 'all' is not (2,) bool" in " ".join(audit(wide).problems)
    strict = replace(exercise, others=(lambda output, anchors: output,))
    assert audit(strict).right == 1 and audit(strict).rights == 2
    deaf = replace(
        exercise,
        gradient=(0,),
        reference=lambda output, anchors: exercise.reference(output.detach(), anchors),
    )
    problems = " ".join(audit(deaf).problems)
    assert "the right answer <lambda>: the check says 'right numbers, but no gradient reaches" in problems


def test_the_table():
    text = table([audit(of_chapter(4)[0])]).splitlines()
    assert text[1].split() == ["04", "flatten_deltas", "-", "3", "of", "3", "6", "of", "6"]
    assert text[-1].startswith("all") and auditing.LEAST_OF_A_PART == 4


# ---------------------------------------------------------------- mistakes as students write them


def iou_of_all(a, b, plus_one=0):
    table = []
    for ax1, ay1, ax2, ay2 in a.tolist():
        row = []
        for bx1, by1, bx2, by2 in b.tolist():
            w, h = min(ax2, bx2) - max(ax1, bx1) + plus_one, min(ay2, by2) - max(ay1, by1) + plus_one
            both = w * h
            union = (ax2 - ax1 + plus_one) * (ay2 - ay1 + plus_one)
            union += (bx2 - bx1 + plus_one) * (by2 - by1 + plus_one) - both
            row.append(both / union if union else 0)
        table.append(row)
    return table if table else torch.zeros(0, len(b))


def iou_with_plus_in_the_areas(a, b, plus_one=0):
    corner = torch.maximum(a[:, None, :2], b[:, :2])
    both = (torch.minimum(a[:, None, 2:], b[:, 2:]) - corner).clamp(min=0).prod(dim=2)
    areas = [(x[:, 2:] - x[:, :2] + plus_one).prod(dim=1) for x in (a, b)]
    return (both / (areas[0][:, None] + areas[1] - both)).nan_to_num()


def iou_with_wide_boxes(a, b, plus_one=0):
    a, b = (x + torch.tensor([0, 0, plus_one, 0]) for x in (a, b))
    return torchvision.ops.box_iou(a, b).nan_to_num()


def iou_without_plus(a, b, plus_one=0):
    return torchvision.ops.box_iou(a.double(), b.double()).nan_to_num()


def encode_forgets_log(boxes, anchors, weights, plus_one=0):
    b, a = (torchvision.ops.box_convert(x, "xyxy", "cxcywh") for x in (boxes, anchors))
    b[:, 2:] += plus_one
    a[:, 2:] += plus_one
    return torch.cat([(b[:, :2] - a[:, :2]) / a[:, 2:], b[:, 2:] / a[:, 2:]], dim=1) * torch.tensor(weights)


def encode_weighs_the_shift(bs, anchors, weights, plus_one=0):
    deltas = boxes.encode(bs, anchors, (1.0, 1.0, 1.0, 1.0), plus_one)
    return torch.cat([deltas[:, :2] * torch.tensor(weights[:2]), deltas[:, 2:]], dim=1)


def encode_in_octaves(bs, anchors, weights, plus_one=0):
    deltas = boxes.encode(bs, anchors, weights, plus_one)
    deltas[:, 2:] /= math.log(2)
    return deltas


def decode_without_clamp(deltas, anchors, weights, plus_one=0):
    out = []
    for d, a in zip(deltas.tolist(), anchors.tolist(), strict=True):
        d = [x / w for x, w in zip(d, weights, strict=True)]
        w, h = a[2] - a[0] + plus_one, a[3] - a[1] + plus_one
        cx, cy = a[0] + w / 2 + d[0] * w, a[1] + h / 2 + d[1] * h
        w, h = w * math.exp(d[2]), h * math.exp(d[3])
        out.append([cx - w / 2, cy - h / 2, cx + w / 2 - plus_one, cy + h / 2 - plus_one])
    return out


def match_by_object(overlap, high, low, keep_best):
    matched = [-1] * overlap.shape[1]
    for n in range(overlap.shape[1]):
        best = overlap[:, n].max()
        if best >= high:
            matched[n] = int(overlap[:, n].argmax())
        elif best >= low:
            matched[n] = -2
    if keep_best:
        for g in range(len(overlap)):
            for n in range(overlap.shape[1]):
                if overlap[g, n] == overlap[g].max() and overlap[g, n] > 0:
                    matched[n] = g
    return matched


def match_first_best(overlap, high, low, keep_best):
    """Each object claims its best candidate, the first of them, and one that nothing touches claims too."""
    best, index = overlap.max(dim=0)
    matched = torch.full_like(index, -2)
    matched[best < low] = -1
    matched[best >= high] = index[best >= high]
    if keep_best:
        matched[overlap.argmax(dim=1)] = torch.arange(len(overlap))
    return matched


def match_always_keeps(overlap, high, low, keep_best):
    return match_first_best(overlap, high, low, True)


def match_keeps_the_first(overlap, high, low, keep_best):
    """The claimed go to their own best object, but of several that tie the first alone is kept."""
    matched, rows = match_first_best(overlap, high, low, False), overlap.argmax(dim=1)
    if keep_best:
        matched[rows] = overlap.argmax(dim=0)[rows]
    return matched


def sample_without_refill(matched, random, number, positive_fraction):
    most = int(number * positive_fraction)
    positives, negatives = (matched >= 0).nonzero()[:, 0], (matched == -1).nonzero()[:, 0]
    positives = positives[random[positives].argsort(descending=True)][:most]
    return positives, negatives[random[negatives].argsort(descending=True)][: number - most]


def nms_in_file_order(bs, scores, threshold):
    kept = []
    for n in range(len(bs)):
        if all(boxes.iou(bs[[n]], bs[[k]])[0, 0] <= threshold for k in kept):
            kept.append(n)
    return kept


def bilinear(feature, y, x, *, shift=0.0, closed=True):
    height, width = feature.shape[1:]
    y, x = y + shift, x + shift
    inside = -1 <= y <= height and -1 <= x <= width if closed else -1 < y < height and -1 < x < width
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    i, j = min(int(y), height - 2), min(int(x), width - 2)
    corner = feature[:, i : i + 2, j : j + 2]  # (C, 2, 2)
    rows, columns = torch.tensor([1 - (y - i), y - i]), torch.tensor([1 - (x - j), x - j])
    return inside * (rows @ corner @ columns)


def pool_with(corner, start, stop):
    def roi_pool(features, rois, output_size, spatial_scale):
        crops = torch.zeros(len(rois), features.shape[1], output_size, output_size)
        for crop, (number, *corners) in zip(crops, rois.tolist(), strict=True):
            x1, y1, x2, y2 = (corner(c * spatial_scale) for c in corners)
            step = [max(high - low + 1, 1) / output_size for low, high in ((y1, y2), (x1, x2))]
            for i in range(output_size):
                for j in range(output_size):
                    t, b = (max(y1 + f((i + k) * step[0]), 0) for k, f in ((0, start), (1, stop)))
                    m, n = (max(x1 + f((j + k) * step[1]), 0) for k, f in ((0, start), (1, stop)))
                    cells = features[int(number), :, t:b, m:n].flatten(1)
                    crop[:, i, j] = cells.amax(dim=1) if cells.shape[1] else 0
        return crops

    return roi_pool


def align_nearest_picture(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    rois = torch.cat([torch.zeros(len(rois), 1), rois[:, 1:]], dim=1)
    return torchvision.ops.roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned)


def align_turned(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    turned = rois[:, [0, 2, 1, 4, 3]]
    return torchvision.ops.roi_align(features, turned, output_size, spatial_scale, sampling_ratio, aligned)


def align_never_aligned(features, rois, output_size, spatial_scale, sampling_ratio, aligned):
    return torchvision.ops.roi_align(features, rois, output_size, spatial_scale, 1, aligned)


def levels_by_log_of_area(boxes, levels, canonical_scale, epsilon, plus_one=0):
    rows = []
    for x1, y1, x2, y2 in boxes.tolist():
        area = max((x2 - x1 + plus_one) * (y2 - y1 + plus_one), 1e-9)
        rows.append(min(max(math.floor(4 + math.log2(area / canonical_scale)), 2), levels + 1) - 2)
    return rows


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("iou", iou_of_all, "a negative overlap must count as 0"),
        ("iou", iou_without_plus, "plus_one is ignored"),
        ("iou", iou_with_plus_in_the_areas, "plus_one is missing in the intersection"),
        ("iou", iou_with_wide_boxes, "plus_one is missing in the height"),
        ("encode", encode_forgets_log, "the log of the ratio of the sizes is missing"),
        ("encode", encode_weighs_the_shift, "dw and dh are not weighted"),
        ("encode", encode_in_octaves, "log2 in the place of the natural logarithm"),
        ("decode", decode_without_clamp, "the clamp of dw and dh is missing"),
        ("match", match_by_object, "a candidate kept by keep_best goes to the ground truth"),
        ("match", match_first_best, "a candidate kept by keep_best goes to the ground truth"),
        ("match", match_always_keeps, "keep_best is ignored: the best candidates are kept where it is False"),
        ("match", match_keeps_the_first, "with keep_best all candidates that tie"),
        ("sample", sample_without_refill, "where positives are few, more negatives must take their place"),
        ("nms", nms_in_file_order, "the scores are ignored"),
        ("bilinear_sample", bilinear, "ok"),
        ("bilinear_sample", partial(bilinear, shift=-0.5), "half a cell is subtracted"),
        ("bilinear_sample", partial(bilinear, closed=False), "at exactly -1 and exactly H"),
        ("roi_pool", pool_with(lambda v: math.floor(v + 0.5), math.floor, math.ceil), "ok"),
        ("roi_pool", pool_with(round, math.floor, math.ceil), "halves are rounded to even"),
        ("roi_pool", pool_with(int, math.floor, math.ceil), "the corners are cut to whole cells"),
        ("roi_pool", pool_with(round, math.ceil, math.floor), "floor and ceil are swapped"),
        ("roi_align", align_nearest_picture, "the batch index is ignored"),
        ("roi_align", align_turned, "x and y are swapped"),
        ("roi_align", align_never_aligned, "sampling_ratio is ignored"),
        ("assign_levels", levels_by_log_of_area, "the square root of the area is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_known_however_it_is_written(name, function, message):
    assert verdict(all_exercises()[name], function).startswith(message)
