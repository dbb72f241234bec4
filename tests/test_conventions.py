"""Each field of the conventions, alone, gives the numbers that its presets promise, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from little import LITTLE, little_model, scene

import minimrcnn.model
from minimrcnn import boxes, losses, masks, pasting, roi_ops, transforms
from minimrcnn.anchors import cell_anchors, grid_anchors
from minimrcnn.backbone import STRIDES, ResNet
from minimrcnn.config import CONVENTIONS, Conventions
from minimrcnn.detection import select
from minimrcnn.parts import Parts
from minimrcnn.rpn import RegionProposalNetwork
from minimrcnn.structures import Proposals, Samples, Targets

PRESETS = ("torchvision", "detectron2", "paper")


def only(field: str) -> list[Conventions]:
    """torchvision's conventions with this one field as each preset has it."""
    return [replace(Conventions(), **{field: getattr(CONVENTIONS[name], field)}) for name in PRESETS]


def test_every_field_has_its_test():
    tested = {name.removeprefix("test_field_") for name in globals() if name.startswith("test_field_")}
    assert tested == {field.name for field in fields(Conventions)}


@pytest.mark.parametrize("field", [field.name for field in fields(Conventions)])
def test_the_presets_differ_in_every_field(field):
    assert len({getattr(c, field) for c in CONVENTIONS.values()}) > 1


# -- the picture ---------------------------------------------------------------------------------------


def channels(field: str, colour: tuple[int, int, int]) -> list[list[float]]:
    """A picture of one colour, normalised, under each preset: its three values."""
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    return [transforms.normalise_and_resize(image, (4, 4), c)[:, 0, 0].tolist() for c in only(field)]


def test_field_channel_order():
    # Red first: (1 - .485) / .229 = 2.2489. Blue first: (0 - .485) / .229 = -2.1179.
    ours = [values[0] for values in channels("channel_order", (255, 0, 0))]
    assert ours == pytest.approx([2.2489, -2.1179, -2.1179], abs=1e-4)


def test_field_mean():
    # Black: -.485 / .229; -(103.53 / 255) / .229; -(102.9801 / 255) / .229.
    ours = [values[0] for values in channels("mean", (0, 0, 0))]
    assert ours == pytest.approx([-2.11790, -1.77293, -1.76351], abs=1e-4)


def test_field_std():
    # Black: -.485 / .229, and -.485 * 255 where values are not divided by a deviation.
    ours = [values[0] for values in channels("std", (0, 0, 0))]
    assert ours == pytest.approx([-2.1179, -123.675, -123.675], abs=1e-3)


def test_field_resize_rounding():
    # 500 * 800 / 388 = 1030.93; and 388 * (800 / 388) is 799.99... in floating point.
    sizes = [transforms.resized_size(388, 500, 800, 1333, c.resize_rounding) for c in only("resize_rounding")]
    assert sizes == [(799, 1030), (800, 1031), (800, 1031)]


def test_field_antialias():
    # 8 columns to 2, only the first is 1. Plain: the mean of columns 1 and 2, 0. Antialiased: a triangle
    # around 2.0 of half width 4 over columns 0..5: .625 .875 .875 .625 .375 .125, of which the first.
    image = torch.zeros(3, 2, 8)
    image[:, :, 0] = 1
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    ours = [
        transforms.normalise_and_resize(image, (2, 2), replace(c, **plain))[0, 0, 0].item()
        for c in only("antialias")
    ]
    assert ours == pytest.approx([0, 0.625 / 3.5, 0], abs=1e-6)


def test_field_stride_in_1x1():
    strides = []
    for c in only("stride_in_1x1"):
        architecture = replace(LITTLE, block="bottleneck", norm="frozen_batch")
        block = ResNet(architecture, c).layer2[0]
        strides.append((block.conv1.stride[0], block.conv2.stride[0]))
    assert strides == [(1, 2), (2, 1), (2, 1)]


# -- boxes and anchors ---------------------------------------------------------------------------------


def test_field_plus_one():
    # From 3 to 5: 2 long, or pixels 3, 4 and 5.
    box = torch.tensor([[3.0, 3, 5, 5]])
    assert [boxes.area(box, c.plus_one).item() for c in only("plus_one")] == [4, 4, 9]
    # The last place in a picture 10 wide: its border 10, or its last pixel 9.
    far, size = torch.tensor([[[0.0, 0, 50, 50]]]), torch.tensor([[10, 10]])
    assert [boxes.clip(far, size, c.plus_one)[0, 0, 2].item() for c in only("plus_one")] == [10, 10, 9]


def test_field_anchor_base():
    # Side 128, height / width 1/2: 181.02 x 90.51. Detectron: sqrt(16 * 16 * 2) = 22.6 -> 23, 11.5 -> 12
    # (to even), times 128 / 16: 184 x 96 around 7.5, counting pixels: 7.5 - 91.5 = -84, and so on.
    anchors = [cell_anchors(128, (0.5,), c.anchor_base, 16)[0].tolist() for c in only("anchor_base")]
    assert anchors[0] == [-91, -45, 91, 45]
    assert anchors[1] == pytest.approx([-90.510, -45.255, 90.510, 45.255], abs=1e-3)
    assert anchors[2] == [-84, -40, 99, 55]


def test_field_anchor_stride():
    # 800 px are 25 rows of P5 and 13 of P6: 800 // 13 = 61, not 64.
    shapes = tuple((-(-800 // s), -(-800 // s)) for s in STRIDES)
    rows = []
    for c in only("anchor_stride"):
        levels = grid_anchors(
            shapes, (800, 800), (32, 64, 128, 256, 512), STRIDES, (1.0,), c, torch.device("cpu")
        )
        rows.append(levels[4][13, 1].item() - levels[4][0, 1].item())
    assert rows == [61, 64, 64]


# -- region proposals ----------------------------------------------------------------------------------


def proposals(conventions: Conventions, anchors: list, training: bool) -> Proposals:
    """What comes of anchors (N, 4), one list a level, that are not moved; scores fall along the rows."""
    rpn = RegionProposalNetwork(LITTLE_RPN, conventions, Parts())
    return rpn.propose(
        [-torch.arange(float(len(a)))[None] for a in anchors],
        [torch.zeros(1, len(a), 4) for a in anchors],
        anchors,
        torch.tensor([[4000, 4000]]),
        training,
    )


LITTLE_RPN = replace(LITTLE, rpn_pre_nms=(2000, 1000), rpn_post_nms_train=0, rpn_samples=256)


def test_field_rpn_min_size():
    anchors = torch.tensor([[0.0, 0, 0.0005, 10], [20, 20, 30, 30]])
    assert [int(proposals(c, [anchors], False).valid.sum()) for c in only("rpn_min_size")] == [1, 2, 2]


def test_field_rpn_post_nms_train():
    corner = torch.cartesian_prod(torch.arange(40.0), torch.arange(30.0)) * 20
    apart = torch.cat([corner, corner + 10], dim=1)  # 1200 boxes
    counts = [int(proposals(c, [apart, apart + 5], True).valid.sum()) for c in only("rpn_post_nms_train")]
    assert counts == [2000, 1000, 2000]


def rpn_losses(conventions: Conventions) -> dict[str, float]:
    """Four sampled anchors with objectness logit 0; the one positive is .2 off in one coordinate."""
    rpn = RegionProposalNetwork(LITTLE_RPN, conventions, Parts())
    anchors = torch.tensor([[0.0, 0, 10, 10]]).expand(4, 4)
    first = torch.tensor([[True, False, False, False]])
    samples = Samples(
        torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.int64), first, torch.ones(1, 4) > 0
    )
    places = torch.zeros(1, 1, 4, dtype=torch.int64)
    truth = Targets(anchors[None, :1], torch.ones(1, 1, dtype=torch.int64), first[:, :1], places, places)
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0, 1] = 0.2
    found = rpn.losses(torch.zeros(1, 4), deltas, anchors, truth, samples)
    return {name: loss.item() for name, loss in found.items()}


def test_field_rpn_beta():
    # Above beta: .2 - beta / 2, that is .2 - 1/18, or .2; divided by 4 sampled anchors.
    ours = [4 * rpn_losses(c)["loss_rpn_box_reg"] for c in only("rpn_beta")]
    assert ours == pytest.approx([0.144444, 0.2, 0.144444], abs=1e-6)


def test_field_rpn_normalizer():
    # Each anchor costs log 2: their mean, or their sum over 256.
    ours = [rpn_losses(c)["loss_objectness"] for c in only("rpn_normalizer")]
    assert ours == pytest.approx([math.log(2), math.log(2) / 64, math.log(2) / 64], rel=1e-6)


# -- regions of interest -------------------------------------------------------------------------------


def test_field_level_epsilon():
    # sqrt(area) / 224 = (1 - d) / 2, so log2 = -1 - 1.44 d. P3 wants d < 1e-6 / 1.44 with 1e-6 outside,
    # d < 2e-6 with 1e-6 inside, d < 2e-8 with 1e-8 inside.
    found = []
    for d in (4e-7, 1e-6, 4e-6):
        box = torch.tensor([[0.0, 0, 112 * (1 - 2 * d), 112]])
        levels = [roi_ops.assign_levels(box, 4, 224.0, c.level_epsilon).item() for c in only("level_epsilon")]
        found.append([2 + level for level in levels])
    assert found == [[3, 2, 3], [2, 2, 3], [2, 2, 2]]
    # float32 cannot tell 1e-8 inside from 1e-8 outside; detectron2's poolers.py has it inside.
    assert CONVENTIONS["detectron2"].level_epsilon == ("inside", 1e-8)


def crop(conventions: Conventions, features: torch.Tensor, roi: list[float]) -> float:
    """One bin of a map (H, W) at stride 1."""
    c, rois = conventions, torch.tensor([[0.0, *roi]])
    return roi_ops.roi_align(features[None, None], rois, 1, 1.0, c.sampling_ratio, c.aligned).item()


def test_field_aligned():
    # f = x + 10 y on cells 2..4 by 3..5 gives its middle, 3 + 40; half a cell less in x and y is 5.5 less.
    features = torch.arange(10.0)[None] + 10 * torch.arange(10.0)[:, None]
    ours = [crop(c, features, [2, 3, 4, 5]) for c in only("aligned")]
    assert ours == pytest.approx([43, 37.5, 43])


def test_field_sampling_ratio():
    # f = x * x over 0..8. Two points: (4 + 36) / 2. Eight, each between two cells: mean of (i² + (i+1)²) / 2.
    features = (torch.arange(12.0) ** 2).expand(12, 12)
    ours = [crop(c, features, [0, 0, 8, 8]) for c in only("sampling_ratio")]
    assert ours == pytest.approx([20, 21.5, 20])


def test_field_box_beta(monkeypatch):
    # An error of .5: .5 - 1/18; .5; and .5 * .5 * .5 where beta is 1.
    one = torch.tensor([[0.5, 0, 0, 0]])
    ours = [
        losses.box_loss(one, one * 0, torch.tensor([True]), c.box_beta, torch.tensor(1.0)).item()
        for c in only("box_beta")
    ]
    assert ours == pytest.approx([0.444444, 0.5, 0.125], abs=1e-6)
    used = []
    monkeypatch.setattr(minimrcnn.model, "box_loss", lambda *a: used.append(a[3]) or losses.box_loss(*a))
    for name in PRESETS:
        little_model(name).run(*scene(), losses=True)
    assert used == [1 / 9, 0.0, 1.0]


# -- masks ---------------------------------------------------------------------------------------------


def test_field_mask_target():
    # A mask on columns 0 and 1 of 4; one bin over all: points at .5, 1.5, 2.5, 3.5 see 1, .5, 0, 0.
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[..., :2] = 1
    place, size = torch.tensor([[0, 0, 4, 4]]), torch.tensor([[4, 4]])
    rest = (place, place.float(), size, size, 1, False)
    ours = [masks.mask_targets(mask, *rest, c.mask_target == "binary", 4).item() for c in only("mask_target")]
    assert ours == pytest.approx([0.375, 0, 0])
    for name in PRESETS:
        output = little_model(name).run(*scene(), losses=True, keep=("mask_targets",))
        fractions = ((output.stages["mask_targets"] % 1) != 0).any()
        assert bool(fractions) == (name == "torchvision")


# -- detections ----------------------------------------------------------------------------------------


def detections(conventions: Conventions, found: list[list[float]]) -> int:
    """How many of these boxes, all of one class, are kept."""
    count = len(found)
    scores = torch.zeros(1, count, 4)
    scores[0, :, 1] = torch.linspace(0.9, 0.5, count)
    rows = Proposals(torch.tensor(found)[None], scores[..., 1], torch.ones(1, count, dtype=torch.bool))
    deltas, size = torch.zeros(1, count, 4, 4), torch.tensor([[100, 100]])
    chosen = select(rows, scores, deltas, size, little_model().architecture, conventions, Parts())
    return int(chosen.valid.sum())


def test_field_nms_threshold():
    # 7 by 10 and 7 by 10, 4 by 10 of them shared: IoU 40 / 100.
    pair = [[0.0, 0, 7, 10], [3, 0, 10, 10]]
    assert [detections(c, pair) for c in only("nms_threshold")] == [2, 2, 1]


def test_field_detection_min_size():
    thin = [[5.0, 5, 5.005, 20], [30, 30, 50, 50]]
    assert [detections(c, thin) for c in only("detection_min_size")] == [1, 2, 2]
    empty = [[5.0, 5, 5, 20], [30, 30, 50, 50]]  # no box at all: nobody's detection
    assert [detections(c, empty) for c in only("detection_min_size")] == [1, 1, 1]


def test_field_paste():
    # A full grid on 2..6. "integer": half the side 2 * 30 / 28 around 4 is 1.86..6.14, cut to 1..6, 6 px wide
    # with x2 - x1 + 1. "exact": the pixels whose centres lie in the box, 2.5 to 5.5.
    box = torch.tensor([[2.0, 2, 6, 6]])
    pixels = [
        (pasting.paste(torch.ones(1, 28, 28), box, 10, 10, c.paste) >= 0.5).sum().item()
        for c in only("paste")
    ]
    assert pixels == [36, 16, 36]
