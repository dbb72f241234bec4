"""The assembly: one pass, named stages, what is checked at the door, and what a result may not depend on."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from little import LITTLE, little_model, scene

import minimrcnn
from minimrcnn.detection import to_pictures
from minimrcnn.randomness import uniform
from minimrcnn.structures import MaskCrops, flatten_rois

TERMS = ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
FROM_LOSSES = ["targets", "train_proposals", "rpn_samples", "roi_samples", "roi_candidates", "roi_labels"]
FROM_LOSSES += ["class_logits", "box_deltas", "mask_logits", "mask_targets", "mask_labels"]
FROM_DETECTIONS = ["proposals", "test_class_logits", "test_box_deltas", "detections", "grids"]
FROM_BOTH = ["batch", "pyramid", "objectness", "deltas", "anchors"]


@pytest.fixture(scope="module")
def model():
    return little_model()


def same_detections(a: list[dict], b: list[dict], atol: float = 0.0) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            torch.testing.assert_close(x[name], y[name], rtol=0, atol=atol)


# -- one pass ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_run_ignores_train_and_eval(model):
    images, targets = scene()
    in_train = model.train().run(images, targets, losses=True, detections=True, key=5)
    in_eval = model.eval().run(images, targets, losses=True, detections=True, key=5)
    assert in_train.losses == in_eval.losses
    same_detections(in_train.detections, in_eval.detections)


@torch.no_grad()
def test_one_call_gives_what_two_calls_give(model):
    images, targets = scene()
    both = model.run(images, targets, losses=True, detections=True, keep=("proposals", "roi_samples"), key=5)
    losses = model.run(images, targets, losses=True, keep=("roi_samples",), key=5)
    detections = model.run(images, detections=True, keep=("proposals",))
    assert sorted(both.losses) == TERMS and both.losses == losses.losses
    assert losses.detections == [] and detections.losses == {}
    same_detections(both.detections, detections.detections)
    assert torch.equal(both.stages["roi_samples"].index, losses.stages["roi_samples"].index)
    assert torch.equal(both.stages["proposals"].boxes, detections.stages["proposals"].boxes)


@torch.no_grad()
def test_every_stage_can_be_kept(model):
    images, targets = scene()
    names = tuple(FROM_BOTH + FROM_LOSSES + FROM_DETECTIONS)
    output = model.run(images, targets, losses=True, detections=True, keep=names)
    assert set(output.stages) == set(names)
    words = model.run.__doc__.split("keep: names of stages to return:")[1].split("paste:")[0]
    assert {w.strip("();.,") for w in words.split()} >= set(names)
    assert model.run(images, keep=("pyramid",)).stages.keys() == {"pyramid"}


def test_an_unknown_stage_is_named(model):
    images, targets = scene()
    with pytest.raises(ValueError, match=r"keep=\('piramid',\).*pyramid.*losses and detections add"):
        model.run(images, targets, keep=("piramid",))
    # A stage of the losses is not there in a pass without them.
    with pytest.raises(ValueError, match="roi_samples"):
        model.run(images, detections=True, keep=("roi_samples",))


@torch.no_grad()
def test_torchvisions_call(model):
    images, targets = scene()
    losses = model.train()(images, targets)
    assert sorted(losses) == TERMS
    assert all(loss.shape == () and math.isfinite(loss) for loss in losses.values())
    found = model.eval()(images)
    assert found[0].keys() == {"boxes", "labels", "scores", "masks"}
    for result, image in zip(found, images, strict=True):
        count = len(result["boxes"])
        assert 0 < count <= LITTLE.detections
        assert result["masks"].shape == (count, 1, *image.shape[1:])
        assert float(result["masks"].min()) >= 0 and float(result["masks"].max()) <= 1
        assert result["labels"].dtype == torch.int64 and set(result["labels"].tolist()) <= {1, 2, 3}
        assert bool((result["scores"].diff() <= 0).all())
        assert bool((result["scores"] > LITTLE.score_threshold).all())
    with pytest.raises(ValueError, match=r"needs targets.*model\.eval"):
        model.train()(images)


def test_training_follows_the_seed_of_torch(model):
    images, targets = scene()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            draws.append({k: v.item() for k, v in model.train()(images, targets).items()})
    assert draws[0] == draws[1] != draws[2]


def test_detections_where_gradients_are_recorded(model):
    """Outside of torch.no_grad() a pass works too, and losses and detections may come from one."""
    images, targets = scene()
    output = model.run(images, targets, losses=True, detections=True)
    sum(output.losses.values()).backward()
    assert len(model.eval()(images)) == 2
    model.zero_grad()


@torch.no_grad()
def test_grids_instead_of_pictures(model):
    images, _ = scene()
    pasted = model.run(images, detections=True).detections
    grids = model.run(images, detections=True, paste=False).detections
    for whole, grid, image in zip(pasted, grids, images, strict=True):
        size = 2 * LITTLE.mask_pool
        assert grid["masks"].shape == (len(grid["boxes"]), size, size)
        again = model.parts.paste(grid["masks"], grid["boxes"], *image.shape[1:], "integer")
        assert torch.equal(again[:, None], whole["masks"])


@torch.no_grad()
def test_without_a_mask_branch():
    model = little_model(masks=False)
    images, targets = scene()
    for target in targets:
        del target["masks"]
    output = model.run(images, targets, losses=True, detections=True)
    assert sorted(output.losses) == [t for t in TERMS if t != "loss_mask"]
    assert output.detections[0].keys() == {"boxes", "labels", "scores"}
    assert not any("mask" in name for name in model.state_dict())


# -- what the result may not depend on -----------------------------------------------------------------


@torch.no_grad()
def test_the_order_of_the_pictures_does_not_matter(model):
    images, targets = scene(((96, 120), (80, 70), (64, 64)), (3, 2, 0))
    keep = ("rpn_samples", "roi_samples", "mask_targets")
    straight = model.run(images, targets, losses=True, detections=True, keep=keep, key=9)
    turned = model.run(images[::-1], targets[::-1], losses=True, detections=True, keep=keep, key=9)
    same_detections(straight.detections, turned.detections[::-1], atol=1e-4)
    for name, loss in straight.losses.items():
        assert turned.losses[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    for name in ("rpn_samples", "roi_samples"):
        a, b = straight.stages[name], turned.stages[name]
        assert torch.equal(a.index, b.index.flip(0)) and torch.equal(a.positive, b.positive.flip(0))


@torch.no_grad()
def test_samples_depend_on_key_and_image_id_alone(model):
    """The same picture in another batch, at another place: the same random choices."""
    images, targets = scene(((96, 120), (80, 110), (90, 120)), (3, 2, 4))

    def samples(rows: list[int], key: int):
        output = model.run(
            [images[r] for r in rows], [targets[r] for r in rows], losses=True, keep=("rpn_samples",), key=key
        )
        return output.stages["rpn_samples"].index

    alone, first, last = samples([1], 4), samples([1, 0], 4), samples([2, 0, 1], 4)
    # All three pictures pad to one size, so anchors have the same rows.
    assert torch.equal(alone[0], first[0]) and torch.equal(alone[0], last[2])
    assert not torch.equal(alone, samples([1], 5))
    other = [targets[1] | {"image_id": torch.tensor(7)}]
    moved = model.run([images[1]], other, losses=True, keep=("rpn_samples",), key=4)
    assert not torch.equal(alone, moved.stages["rpn_samples"].index)


@torch.no_grad()
def test_anchors_and_proposals_draw_different_numbers(model, monkeypatch):
    keys = []
    for module in (minimrcnn.rpn, minimrcnn.model):
        monkeypatch.setattr(module, "uniform", lambda key, count: keys.append(key) or uniform(key, count))
    model.run(*scene(), losses=True, key=3)
    assert len(keys) == 2 and not bool((keys[0] == keys[1]).any())


@torch.no_grad()
@pytest.mark.parametrize("anchor_stride", ["torchvision", "detectron2"])
def test_padding_changes_nothing_but_what_the_conventions_say(anchor_stride):
    """A picture beside a larger one: proposals never leave it, and masks and boxes keep their place."""
    model = little_model(anchor_stride)
    images, _ = scene(((96, 96), (96, 128)), (1, 1))
    output = model.run(images, detections=True, keep=("proposals", "batch"))
    assert output.stages["batch"].images.shape[-2:] == (96, 128)
    assert not bool(output.stages["batch"].images[0, :, :, 96:].any())
    proposals = output.stages["proposals"]
    assert float(proposals.boxes[0][proposals.valid[0]][:, 2].max()) <= 96
    assert float(output.detections[0]["boxes"][:, 2].max()) <= 96
    # With fixed strides the anchors of the shared cells are the same, whatever the padding.
    alone = model.run(images[:1], keep=("anchors",)).stages["anchors"]
    beside = model.run(images, keep=("anchors",)).stages["anchors"]
    first = len(model.architecture.anchor_ratios)
    for small, large in zip(alone, beside, strict=True):
        assert torch.equal(small[:first], large[:first])


# -- odd batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 0), (2, 0), (0, 1)])
def test_pictures_without_objects_train(counts):
    model = little_model()
    images, targets = scene(counts=counts)
    losses = model.run(images, targets, losses=True, key=1).losses
    assert sorted(losses) == TERMS
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    if counts == (0, 0):
        for name in ("loss_box_reg", "loss_mask", "loss_rpn_box_reg"):
            assert losses[name].item() == 0
        assert losses["loss_classifier"].item() > 0 and losses["loss_objectness"].item() > 0


@torch.no_grad()
def test_dense_masks_and_crops_agree(model):
    images, targets = scene()
    crops = [t | {"masks": MaskCrops.from_dense(t["masks"])} for t in targets]
    booleans = [t | {"masks": t["masks"].bool()} for t in targets]
    dense = model.run(images, targets, losses=True, key=2).losses
    assert model.run(images, crops, losses=True, key=2).losses == dense
    assert model.run(images, booleans, losses=True, key=2).losses == dense


@torch.no_grad()
def test_uint8_and_float_pictures_agree(model):
    images, _ = scene()
    eight = [(image * 255).to(torch.uint8) for image in images]
    same_detections(model.eval()(eight), model([image.float() / 255 for image in eight]))


def test_the_inputs_are_not_changed(model):
    images, targets = scene()
    before = [image.clone() for image in images], [t["boxes"].clone() for t in targets]
    model.run(images, targets, losses=True, detections=True)
    assert all(map(torch.equal, images, before[0]))
    assert all(torch.equal(t["boxes"], b) for t, b in zip(targets, before[1], strict=True))


@pytest.mark.parametrize("conventions", ["torchvision", "detectron2", "paper"])
def test_bfloat16_on_the_cpu(conventions):
    model = little_model(conventions)
    images, targets = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.run(images, targets, losses=True, detections=True, keep=("mask_logits", "grids"))
    assert output.stages["mask_logits"].dtype == torch.bfloat16
    exact = model.run(images, targets, losses=True)
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32
        # bfloat16 keeps 8 bits, and other proposals may be chosen: near, not equal.
        assert loss.item() == pytest.approx(exact.losses[name].item(), rel=0.25, abs=0.02), name
    sum(output.losses.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_short_side_is_drawn_for_each_picture_and_step():
    model = little_model(min_size=(64, 80, 96), max_size=400)
    images, targets = scene(((96, 96),) * 6, (1,) * 6)

    def sides(key: int) -> list[int]:
        return model.make_batch(images, targets, True, key).sizes[:, 0].tolist()

    assert {side for key in range(4) for side in sides(key)} == {64, 80, 96}
    assert sides(1) == sides(1)
    in_training = model.run(images[:2], targets[:2], losses=True, keep=("batch",), key=1)
    assert in_training.stages["batch"].sizes[:, 0].tolist() == sides(1)[:2]
    in_test = model.run(images[:2], detections=True, keep=("batch",), key=1)
    assert in_test.stages["batch"].sizes[:, 0].tolist() == [96, 96]


def test_more_candidates_than_the_cap_warns(model):
    images, _ = scene()
    output = model.run(images, detections=True, keep=("detections", "batch", "grids"))
    found = output.stages["detections"]
    found.overflow[1] = True
    rest = output.stages["grids"], output.stages["batch"], model.architecture, model.conventions, None
    with pytest.warns(UserWarning, match=r"4096 candidates.*Raise Architecture\.candidates"):
        to_pictures(found, *rest)
    found.overflow[1] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_pictures(found, *rest)


@torch.no_grad()
def test_on_the_cpu_no_candidate_is_lost(model):
    """The cap is for fixed shapes; here there are none, and a cap of 1 changes nothing."""
    images, _ = scene()
    wanted = model.eval()(images)
    capped = little_model(candidates=1).eval()
    same_detections(capped(images), wanted)


# -- new classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_reset_heads_wants_a_class_beside_the_background(model, count):
    with pytest.raises(ValueError, match=f"num_classes={count}: want at least 2"):
        model.reset_heads(count)


def test_reset_heads_fits_new_classes():
    model = little_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_heads(7)
    after = model.state_dict()
    changed = {n for n, v in after.items() if v.shape != before[n].shape or not torch.equal(v, before[n])}
    assert after.keys() == before.keys()
    prefixes = {".".join(name.split(".")[:2]) for name in changed}
    assert prefixes == {"roi_heads.box_predictor", "roi_heads.mask_predictor"}
    assert model.architecture.num_classes == model.rpn.architecture.num_classes == 7
    images, targets = scene()
    targets[0]["labels"][0] = 6
    output = model.run(images, targets, losses=True, detections=True, keep=("class_logits", "mask_logits"))
    assert output.stages["class_logits"].shape[1] == output.stages["mask_logits"].shape[1] == 7


def test_change_reaches_every_stage():
    model = little_model()
    model.change(score_threshold=1.0, rpn_post_nms_test=5)
    output = model.run(scene()[0], detections=True, keep=("proposals",))
    assert output.stages["proposals"].boxes.shape[1] == 5
    assert [len(d["boxes"]) for d in output.detections] == [0, 0]


# -- the flat list of regions --------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_flat_rois_and_back(rows):
    valid = torch.tensor(rows)
    boxes = torch.arange(valid.numel() * 4.0).view(*valid.shape, 4)
    rois = flatten_rois(boxes, valid)
    assert len(rois.boxes) == max(int(valid.sum()), 1)
    assert torch.equal(rois.valid, torch.ones(len(rois.boxes), dtype=torch.bool) & bool(valid.any()))
    spread = rois.spread(rois.boxes, valid.shape)
    assert torch.equal(spread[valid], boxes[valid])
    assert torch.equal(boxes[rois.batch, rois.rows % 3], rois.boxes)
