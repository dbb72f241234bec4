"""Stage by stage the same numbers as torchvision 0.26, on the CPU in float32."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from parity import (
    FEATURE,
    PIXEL,
    SCORE,
    SameSamples,
    largest_difference,
    losses_of_both,
    our_model,
    pairing,
    picture,
    target,
    torchvision_model,
    torchvision_stages,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from minimrcnn import transforms
from minimrcnn.anchors import grid_anchors
from minimrcnn.backbone import STRIDES
from minimrcnn.config import Architecture, Conventions
from minimrcnn.detection import select
from minimrcnn.structures import Proposals

KEEP = ("batch", "pyramid", "objectness", "deltas", "anchors", "proposals")
KEEP += ("test_class_logits", "test_box_deltas", "detections", "grids")
# Small enough for seconds; every cut (before NMS, after it, detections) still cuts.
THEIRS = {"min_size": 200, "max_size": 280, "rpn_pre_nms_top_n_train": 500, "rpn_pre_nms_top_n_test": 400}
THEIRS |= {"rpn_post_nms_top_n_train": 300, "rpn_post_nms_top_n_test": 250, "box_detections_per_img": 40}
OURS = {"min_size": (200,), "max_size": 280, "rpn_pre_nms": (500, 400)}
OURS |= {"rpn_post_nms_train": 300, "rpn_post_nms_test": 250, "detections": 40}


def stages_of_both(theirs, ours, pictures) -> SimpleNamespace:
    reference = torchvision_stages(theirs, pictures)
    with torch.no_grad():
        output = ours.run(pictures, detections=True, keep=KEEP)
    return SimpleNamespace(theirs=reference, ours=output.stages, detections=output.detections)


@pytest.fixture(scope="module")
def models():
    pictures = [picture(150, 200, 1), picture(250, 190, 2)]
    theirs = torchvision_model(pictures, **THEIRS)
    return SimpleNamespace(pictures=pictures, theirs=theirs, ours=our_model(theirs, **OURS))


@pytest.fixture(scope="module")
def both(models):
    return stages_of_both(models.theirs, models.ours, models.pictures)


@pytest.fixture(scope="module")
def full_size():
    """One picture at 800 px with the default counts; its short side of 388 comes out as 799."""
    pictures = [picture(388, 500, 3, blob=8)]
    theirs = torchvision_model(pictures)
    return stages_of_both(theirs, our_model(theirs), pictures)


class Stages:
    """The comparisons; each subclass says of which pass."""

    @pytest.fixture
    def run(self) -> SimpleNamespace:
        raise NotImplementedError

    def test_transform(self, run):
        batch, reference = run.ours["batch"], run.theirs["batch"]
        assert batch.sizes.tolist() == [list(size) for size in reference.image_sizes]
        assert torch.equal(batch.images, reference.tensors)

    def test_pyramid(self, run):
        for ours, theirs in zip(run.ours["pyramid"], run.theirs["pyramid"], strict=True):
            assert theirs.std() > 0.5  # a difference means something
            assert largest_difference(ours, theirs) < FEATURE

    def test_anchors(self, run):
        assert torch.equal(torch.cat(run.ours["anchors"]), run.theirs["anchors"])

    def test_objectness_and_deltas(self, run):
        for name in ("objectness", "deltas"):
            for ours, theirs in zip(run.ours[name], run.theirs[name], strict=True):
                assert largest_difference(ours, theirs) < FEATURE

    def test_proposals(self, run):
        ours = run.ours["proposals"]
        for i, theirs in enumerate(run.theirs["proposals"]):
            pairing(ours.boxes[i][ours.valid[i]], theirs)
            assert bool((ours.scores[i].diff() <= 0).all())

    def test_box_logits(self, run):
        ours = run.ours["proposals"]
        counts = ours.valid.sum(dim=1).tolist()
        rows, start = [], 0
        for i, theirs in enumerate(run.theirs["proposals"]):
            rows.append(start + pairing(ours.boxes[i][ours.valid[i]], theirs))
            start += counts[i]
        rows = torch.cat(rows)
        for name in ("class_logits", "box_deltas"):
            assert largest_difference(run.ours[f"test_{name}"][rows], run.theirs[name]) < FEATURE

    def test_detections(self, run):
        for ours, theirs in zip(run.detections, run.theirs["finished"], strict=True):
            assert len(theirs["boxes"]) > 10
            row = pairing(ours["boxes"], theirs["boxes"])
            assert torch.equal(ours["labels"][row], theirs["labels"])
            assert largest_difference(ours["scores"][row], theirs["scores"]) < SCORE

    def test_grids(self, run):
        ours = run.ours["detections"]
        for i, theirs in enumerate(run.theirs["detections"]):
            row = pairing(ours.boxes[i][ours.valid[i]], theirs["boxes"])
            grids = run.ours["grids"][i][ours.valid[i]][row]
            assert largest_difference(grids, theirs["masks"][:, 0]) < FEATURE

    def test_pasted_masks(self, run):
        for ours, theirs in zip(run.detections, run.theirs["finished"], strict=True):
            row = pairing(ours["boxes"], theirs["boxes"])
            ours, theirs = ours["masks"][row] > 0.5, theirs["masks"] > 0.5
            assert theirs.sum() > 10_000
            assert (ours == theirs).float().mean() >= 0.9999
            # Most of a picture is background on both sides: of the masks' own pixels too few may differ.
            assert (ours != theirs).sum() <= 1e-3 * theirs.sum()


class TestTwoPictures(Stages):
    @pytest.fixture
    def run(self, both):
        assert both.ours["batch"].sizes.tolist() == [[200, 266], [263, 200]]
        return both


@pytest.mark.slow
class TestFullSize(Stages):
    @pytest.fixture
    def run(self, full_size):
        batch = full_size.ours["batch"]
        assert batch.sizes.tolist() == [[799, 1030]]
        assert batch.images.shape == (1, 3, 800, 1056)
        assert full_size.ours["pyramid"][4].shape[-2] == 13  # 800 // 13 = 61, the stride of P6
        return full_size


# -- the picture ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(388, 500), (334, 350), (201, 201), (60, 400), (400, 60), (97, 33)])
def test_transform_at_800(size):
    image = picture(*size, seed=4)
    reference, _ = GeneralizedRCNNTransform(800, 1333, Conventions.mean, Conventions.std).eval()([image])
    batch = transforms.make_batch([image], torch.zeros(1), [800], 1333, 32, Conventions())
    assert batch.sizes.tolist() == [list(reference.image_sizes[0])]
    assert torch.equal(batch.images, reference.tensors)


def test_every_size_is_resized_to_torchvisions():
    transform = GeneralizedRCNNTransform(80, 133, Conventions.mean, Conventions.std).eval()
    for height in range(20, 121):
        for width in (height, height + 7, 3 * height):
            resized, _ = transform.resize(torch.zeros(1, height, width))
            assert transforms.resized_size(height, width, 80, 133, "floor") == tuple(resized.shape[1:])


def test_short_sides_that_become_799():
    short = [s for s in range(200, 641) if transforms.resized_size(s, s, 800, 1333, "floor")[0] == 799]
    assert len(short) == 18
    assert {334, 388} <= set(short)


def test_uint8_is_the_same_picture():
    image = (picture(60, 80, 5) * 255).to(torch.uint8)
    batches = [
        transforms.make_batch([x], torch.zeros(1), [90], 133, 32, Conventions())
        for x in (image, image.float() / 255)
    ]
    assert torch.equal(batches[0].images, batches[1].images)


@pytest.mark.parametrize("size", [(800, 1088), (800, 800), (1344, 800), (224, 320), (32, 32)])
def test_anchors_of_every_level(size):
    shapes = tuple((-(-size[0] // s), -(-size[1] // s)) for s in STRIDES)
    generator = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    features = [torch.zeros(1, 1, *shape) for shape in shapes]
    theirs = generator(ImageList(torch.zeros(1, 3, *size), [size]), features)[0]
    a = Architecture()
    levels = grid_anchors(
        shapes, size, a.anchor_sizes, STRIDES, a.anchor_ratios, Conventions(), torch.device("cpu")
    )
    assert torch.equal(torch.cat(levels), theirs)


# -- rare cases ----------------------------------------------------------------------------------------


def test_a_picture_without_detections(models, both):
    """The threshold stands between the best scores of the two pictures."""
    best = sorted(float(d["scores"].max()) for d in both.theirs["finished"])
    assert best[1] - best[0] > 1e-3
    threshold = sum(best) / 2
    ours = our_model(models.theirs, **OURS, score_threshold=threshold)
    before, models.theirs.roi_heads.score_thresh = models.theirs.roi_heads.score_thresh, threshold
    run = stages_of_both(models.theirs, ours, models.pictures)
    models.theirs.roi_heads.score_thresh = before
    assert sorted(len(d["boxes"]) > 0 for d in run.detections) == [False, True]
    for mine, theirs in zip(run.detections, run.theirs["finished"], strict=True):
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
        row = pairing(mine["boxes"], theirs["boxes"])
        assert torch.equal(mine["labels"][row], theirs["labels"])
        assert largest_difference(mine["scores"][row], theirs["scores"]) < SCORE


def test_no_picture_has_a_detection(models):
    ours = our_model(models.theirs, **OURS, score_threshold=1.0)
    with torch.no_grad():
        found = ours(models.pictures)
    assert [tuple(d["masks"].shape) for d in found] == [(0, 1, 150, 200), (0, 1, 250, 190)]
    assert [tuple(d["boxes"].shape) for d in found] == [(0, 4), (0, 4)]


def test_degenerate_proposals_are_dropped_as_torchvision_drops_them(models, both):
    """Of 40 anchors 39 are pushed out of the picture, where clipping makes it 0 px wide."""
    batch, anchors = both.theirs["batch"], both.ours["anchors"]
    deltas = [d.clone() for d in both.ours["deltas"]]
    for level in deltas:
        pushed = torch.arange(level.shape[1]) % 40 > 0
        level[:, pushed, 0] = 60.0  # widths to the right
    proposals = models.ours.rpn.propose(
        both.ours["objectness"], deltas, anchors, both.ours["batch"].sizes, training=False
    )
    rpn = models.theirs.rpn
    boxes = rpn.box_coder.decode(torch.cat(deltas, dim=1).flatten(0, 1), [torch.cat(anchors)] * 2)
    theirs, scores = rpn.filter_proposals(
        boxes.view(2, -1, 4),
        torch.cat(both.ours["objectness"], dim=1),
        batch.image_sizes,
        [len(a) for a in anchors],
    )
    assert int(proposals.valid.sum()) < proposals.valid.numel()
    for i in range(2):
        row = pairing(proposals.boxes[i][proposals.valid[i]], theirs[i])
        assert largest_difference(proposals.scores[i][proposals.valid[i]][row], scores[i]) < SCORE
        width, height = (theirs[i][:, 2:] - theirs[i][:, :2]).unbind(1)
        assert float(torch.minimum(width, height).min()) >= 1e-3


def test_select_equals_torchvision_on_the_same_logits(models, both):
    """From the same numbers the same detections, bit for bit and in the same order."""
    a = models.ours.architecture
    proposals = both.ours["proposals"]
    logits, deltas = both.ours["test_class_logits"], both.ours["test_box_deltas"]
    counts = proposals.valid.sum(dim=1).tolist()
    boxes = [b[v] for b, v in zip(proposals.boxes, proposals.valid, strict=True)]
    theirs = models.theirs.roi_heads.postprocess_detections(
        logits, deltas.flatten(1), boxes, both.theirs["batch"].image_sizes
    )
    scores = torch.zeros(*proposals.valid.shape, a.num_classes)
    spread = torch.zeros(*proposals.valid.shape, a.num_classes, 4)
    scores[proposals.valid], spread[proposals.valid] = logits.softmax(dim=1), deltas
    how = (a, models.ours.conventions, models.ours.parts)
    ours = select(proposals, scores, spread, both.ours["batch"].sizes, *how)
    assert counts == [len(b) for b in boxes]
    for i in range(2):
        rows = ours.valid[i]
        assert torch.equal(ours.boxes[i][rows], theirs[0][i])
        assert torch.equal(ours.scores[i][rows], theirs[1][i])
        assert torch.equal(ours.labels[i][rows], theirs[2][i])


# -- training ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(models):
    """Losses in float32; the second of three pictures has no objects."""
    pictures = [*models.pictures, picture(180, 180, 6)]
    sizes = [tuple(p.shape[-2:]) for p in pictures]
    targets = [target(*size, count, 10 + count) for size, count in zip(sizes, (4, 0, 2), strict=True)]
    with torch.no_grad():
        return losses_of_both(models.ours, models.theirs, pictures, targets)


def test_the_five_losses(training):
    assert training.ours.keys() == training.theirs.keys()
    for name, theirs in training.theirs.items():
        assert float(theirs) > 1e-3
        assert float(training.ours[name]) == pytest.approx(float(theirs), rel=1e-5), name


def test_the_samples_are_worth_comparing(training):
    rpn, roi = training.stages["rpn_samples"], training.stages["roi_samples"]
    assert rpn.positive.sum(dim=1).tolist()[1] == 0
    assert min(rpn.positive.sum(dim=1)[[0, 2]]) >= 2
    assert min(roi.positive.sum(dim=1)[[0, 2]]) >= 2
    soft = training.stages["mask_targets"]
    assert bool(((soft > 0) & (soft < 1)).any())


def test_the_gradients_of_all_parameters(models, monkeypatch):
    """With weights in double precision, and with ReLUs whose corner at 0 is rounded off.

    Of millions of ReLUs some have an input within rounding of 0: one model finds them open, the other
    shut, and a single one of them changes a gradient by a thousandth. Without the corner there is
    nothing left to hide behind.
    """
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x, beta=10))
    pictures = [picture(72, 96, 21), picture(96, 75, 22)]
    targets = [target(72, 96, 3, 21), target(96, 75, 0, 22)]
    ours, theirs = copy.deepcopy(models.ours).double(), copy.deepcopy(models.theirs).double()
    theirs.transform.min_size = (96,)
    theirs.rpn._post_nms_top_n["training"] = 120
    ours.change(min_size=(96,), rpn_post_nms_train=120)
    make_batch = ours.make_batch

    def make_double_batch(*arguments):
        batch = make_batch(*arguments)
        batch.images = batch.images.double()
        return batch

    monkeypatch.setattr(ours, "make_batch", make_double_batch)
    both = losses_of_both(ours, theirs, pictures, targets)
    sum(both.ours.values()).backward()
    sum(both.theirs.values()).backward()
    reference = dict(theirs.named_parameters())
    trained = {n for n, p in reference.items() if p.requires_grad}
    assert trained == {n for n, p in ours.named_parameters() if p.requires_grad}
    worst = {}
    for name, parameter in ours.named_parameters():
        if name in trained:
            wanted = reference[name].grad
            worst[name] = largest_difference(parameter.grad, wanted) / float(wanted.abs().max() + 1e-9)
    assert {name: error for name, error in worst.items() if error > 1e-4} == {}


def test_a_degenerate_proposal_in_training(models):
    """A proposal of zero width among the samples: a background example, whose code is log(0)."""
    size = (200, 266)
    one = target(*size, 2, 31)
    boxes = torch.tensor([[50.0, 20, 50, 90], [10, 10, 120, 150], [266, 0, 266, 200]])
    theirs, ours = models.theirs, models.ours
    with torch.no_grad():
        batch, _ = theirs.transform([picture(*size, 8)])
        features = theirs.backbone(batch.tensors)
    theirs.train()
    theirs.roi_heads.fg_bg_sampler = SameSamples([(torch.tensor([3, 4]), torch.tensor([0, 1, 2]))])
    _, reference = theirs.roi_heads(features, [boxes], [size], [one])
    theirs.eval()
    our_batch = ours.make_batch([picture(*size, 8)], [one], True, 0)
    targets = transforms.make_targets([one], our_batch, True)
    proposals = Proposals(boxes[None], torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    candidates, samples = ours.sample_rois(proposals, targets, torch.tensor([1]))
    assert sorted(samples.index[samples.valid].tolist()) == [0, 1, 2, 3, 4]
    stages = {"pyramid": list(features.values())}
    losses = ours.box_losses(candidates, samples, targets, stages)
    losses |= ours.mask_losses(our_batch, candidates, samples, targets, stages)
    for name, loss in reference.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    ours.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in ours.roi_heads.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
    ours.zero_grad()


def test_pixel_tolerance_is_the_stated_one():
    assert (FEATURE, PIXEL, SCORE) == (1e-4, 1e-3, 1e-4)
