"""Boxes against torchvision's operators."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from minimrcnn import boxes as box_ops

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]
seeds = st.integers(0, 2**31 - 1)


def random_boxes(count: int, seed: int, whole: bool = False, side: int = 100) -> torch.Tensor:
    """Boxes of 1 px and more; `whole` puts them on a coarse grid, where ties and touching are common."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    size = torch.rand(count, 2, generator=generator) * side + 1
    boxes = torch.cat([corner, corner + size], dim=1)
    return (boxes / 10).round() * 10 + torch.tensor([0, 0, 10, 10]) if whole else boxes


def random_scores(count: int, seed: int, levels: int) -> torch.Tensor:
    """Scores in 0..1 that take few values: many ties."""
    return torch.randint(levels, (count,), generator=torch.Generator().manual_seed(seed)) / levels


# -- IoU, area, clip -----------------------------------------------------------------------------------


@given(seeds, st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_iou_is_torchvisions(seed, n, m, whole):
    a, b = random_boxes(n, seed, whole), random_boxes(m, seed + 1, whole)
    torch.testing.assert_close(box_ops.iou(a, b), torchvision.ops.box_iou(a, b), rtol=0, atol=1e-6)
    torch.testing.assert_close(box_ops.area(a), torchvision.ops.box_area(a), rtol=0, atol=0)


def test_iou_of_batches_is_that_of_each():
    a, b = random_boxes(12, 0).view(3, 4, 4), random_boxes(15, 1).view(3, 5, 4)
    each = torch.stack([box_ops.iou(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(box_ops.iou(a, b), each)
    torch.testing.assert_close(box_ops.iou(a, b[0]), torch.stack([box_ops.iou(x, b[0]) for x in a]))


def test_iou_of_nothing_with_nothing_is_zero():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert box_ops.iou(point, point).item() == 0
    assert box_ops.iou(point, torch.tensor([[0.0, 0, 9, 9]])).item() == 0


def test_iou_by_hand():
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
    assert box_ops.iou(a, b).item() == pytest.approx(8 / 24)
    # Counting pixels: both 5x5, 3x5 of them shared.
    assert box_ops.iou(a, b, 1).item() == pytest.approx(15 / 35)


@given(seeds, st.integers(0, 20), st.tuples(st.integers(1, 150), st.integers(1, 150)))
def test_clip_is_torchvisions(seed, count, size):
    boxes = random_boxes(count, seed, side=200) - 60
    clipped = box_ops.clip(boxes[None], torch.tensor([size]))[0]
    assert torch.equal(clipped, torchvision.ops.clip_boxes_to_image(boxes, size))


def test_clip_cuts_each_picture_to_its_own_size():
    boxes = torch.tensor([[-5.0, -5, 500, 500]]).expand(2, 1, 4)
    clipped = box_ops.clip(boxes, torch.tensor([[30, 40], [20, 10]]))
    assert clipped[:, 0].tolist() == [[0, 0, 40, 30], [0, 0, 10, 20]]


# -- the code of boxes ---------------------------------------------------------------------------------


@given(seeds, st.integers(1, 20), st.sampled_from(WEIGHTS))
def test_encode_and_decode_are_torchvisions(seed, count, weights):
    boxes, anchors = random_boxes(count, seed), random_boxes(count, seed + 1)
    coder = BoxCoder(weights)
    deltas = box_ops.encode(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-6, atol=1e-5)
    noise = deltas + torch.randn(deltas.shape, generator=torch.Generator().manual_seed(seed))
    theirs = coder.decode_single(noise, anchors)
    torch.testing.assert_close(box_ops.decode(noise, anchors, weights), theirs, rtol=1e-6, atol=1e-4)


@given(seeds, st.integers(0, 20), st.sampled_from(WEIGHTS), st.integers(0, 1))
def test_decode_undoes_encode(seed, count, weights, plus_one):
    # 1 to 61 px: no box is more than 62.5 times its anchor, where decode clamps.
    boxes = random_boxes(count, seed, side=60).double()
    anchors = random_boxes(count, seed + 1, side=60).double()
    deltas = box_ops.encode(boxes, anchors, weights, plus_one)
    again = box_ops.decode(deltas, anchors, weights, plus_one)
    torch.testing.assert_close(again, boxes, rtol=0, atol=1e-9)


@given(st.floats(4.0, 1e4), st.sampled_from(WEIGHTS))
def test_decode_clamps_the_scale(delta, weights):
    anchors = torch.tensor([[0.0, 0, 16, 16]])
    deltas = torch.tensor([[0, 0, delta * weights[2], delta * weights[3]]])
    box = box_ops.decode(deltas, anchors, weights)
    assert torch.equal(box, BoxCoder(weights).decode_single(deltas, anchors))
    wide = 16 * math.exp(min(delta, math.log(1000 / 16)))
    assert float(box[0, 2] - box[0, 0]) == pytest.approx(wide, rel=1e-5)


def test_encode_by_hand():
    # The anchor is 10 wide and 20 high around (5, 10); the box 20 wide and 20 high around (10, 12).
    code = box_ops.encode(torch.tensor([[0.0, 2, 20, 22]]), torch.tensor([[0.0, 0, 10, 20]]), WEIGHTS[1])
    assert code[0].tolist() == pytest.approx([10 * 5 / 10, 10 * 2 / 20, 5 * math.log(2), 0.0])


# -- non-maximum suppression ---------------------------------------------------------------------------


@given(seeds, st.integers(0, 30), st.booleans(), st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.7]))
def test_nms_greedy_is_torchvisions(seed, count, whole, threshold):
    boxes, scores = random_boxes(count, seed, whole), random_scores(count, seed, 7)
    theirs = torchvision.ops.nms(boxes, scores, threshold)
    assert torch.equal(box_ops.nms_greedy(boxes, scores, threshold), theirs)


@given(seeds, st.integers(1, 4), st.integers(1, 30), st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 0.7]))
def test_nms_rounds_is_greedy_for_each_picture(seed, pictures, count, whole, threshold):
    boxes = random_boxes(pictures * count, seed, whole).view(pictures, count, 4)
    scores = random_scores(pictures * count, seed, 7).view(pictures, count)
    valid = random_scores(pictures * count, seed + 1, 4).view(pictures, count) > 0
    kept = box_ops.nms_rounds(boxes, scores, valid, threshold, rounds=count)
    for i in range(pictures):
        rows = valid[i].nonzero()[:, 0]
        theirs = rows[torchvision.ops.nms(boxes[i, rows], scores[i, rows], threshold)]
        assert kept[i].nonzero()[:, 0].tolist() == sorted(theirs.tolist())


def test_nms_rounds_settles_a_long_chain():
    """Each box drops the next and so saves the one after: as deep as a chain of 32 can be."""
    shift = torch.arange(32.0)[:, None] * torch.tensor([4.0, 0, 4, 0])
    boxes = (torch.tensor([0.0, 0, 10, 10]) + shift)[None]
    scores, valid = torch.linspace(1, 0.1, 32)[None], torch.ones(1, 32, dtype=torch.bool)
    kept = box_ops.nms_rounds(boxes, scores, valid, 0.3)
    assert kept[0].nonzero()[:, 0].tolist() == torchvision.ops.nms(boxes[0], scores[0], 0.3).tolist()
    assert kept[0].tolist() == [True, False] * 16


@given(seeds, st.integers(1, 3), st.integers(1, 40), st.booleans(), st.sampled_from([0.25, 0.5, 0.7]))
def test_batched_nms_is_torchvisions(seed, pictures, count, whole, threshold):
    boxes = random_boxes(pictures * count, seed, whole).view(pictures, count, 4)
    scores = torch.rand(pictures, count, generator=torch.Generator().manual_seed(seed))
    groups = (random_scores(pictures * count, seed + 1, 5) * 5).long().view(pictures, count)
    valid = random_scores(pictures * count, seed + 2, 4).view(pictures, count) > 0
    kept = box_ops.batched_nms(boxes, scores, groups, valid, threshold)
    for i in range(pictures):
        rows = valid[i].nonzero()[:, 0]
        # A grid of 10 px is exact in float32 even after torchvision has moved the groups apart.
        theirs = torchvision.ops.boxes._batched_nms_vanilla(
            boxes[i, rows], scores[i, rows], groups[i, rows], threshold
        )
        assert kept[i].nonzero()[:, 0].tolist() == sorted(rows[theirs].tolist())
        if whole:
            again = torchvision.ops.batched_nms(boxes[i, rows], scores[i, rows], groups[i, rows], threshold)
            assert sorted(again.tolist()) == sorted(theirs.tolist())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(seeds, st.integers(1, 30))
def test_batched_nms_on_a_gpu_keeps_the_same(seed, count):
    """There the groups are moved apart and nothing waits for the host."""
    boxes = random_boxes(2 * count, seed, whole=True).view(2, count, 4)
    scores = random_scores(2 * count, seed, 7).view(2, count)
    groups = (random_scores(2 * count, seed + 1, 5) * 5).long().view(2, count)
    valid = random_scores(2 * count, seed + 2, 4).view(2, count) > 0
    kept = box_ops.batched_nms(boxes.cuda(), scores.cuda(), groups.cuda(), valid.cuda(), 0.5)
    assert torch.equal(kept.cpu(), box_ops.batched_nms(boxes, scores, groups, valid, 0.5))


def test_touching_boxes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 10, 10]])
    assert box_ops.nms_greedy(boxes, torch.tensor([0.5, 0.6, 0.4]), 0.0).tolist() == [1, 0]
    # Where pixels are counted, both reach over column 10: they overlap, and one goes.
    counted = box_ops.to_lengths(boxes, 1)
    assert box_ops.nms_greedy(counted, torch.tensor([0.5, 0.6, 0.4]), 0.0).tolist() == [1]
