"""The trained mini model that comes with the package: present, small, as described, and good at its toys."""

from __future__ import annotations

import hashlib

import pytest
import torch

import minimrcnn
from minimrcnn.boxes import iou
from minimrcnn.datasets import toybox
from minimrcnn.weights import TOYBOX


def test_it_is_the_file_that_its_page_describes():
    data = TOYBOX.read_bytes()
    assert len(data) < 3_000_000
    assert hashlib.sha256(data).hexdigest() in (TOYBOX.parent / "README.md").read_text()


def test_it_knows_its_classes_and_is_ready_to_detect():
    state = torch.load(TOYBOX, weights_only=True)
    assert tuple(state["class_map"]["names"]) == toybox.CATEGORIES
    assert {value.dtype for value in state["model"].values()} == {torch.float16}
    model = minimrcnn.mini(weights="TOYBOX")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_it_finds_most_toys_of_pictures_that_it_has_not_seen():
    """Found: boxes of IoU .5, the right class, a score of .3. (Box AP50 of the validation pictures: .85.)"""
    model = minimrcnn.mini(weights="TOYBOX")
    found = total = 0
    for index in range(16):
        picture, toys = toybox.scene(seed=77, split="val", index=index, size=192)
        with torch.inference_mode():
            (result,) = model([torch.from_numpy(picture).permute(2, 0, 1)])
        keep = result["scores"] > 0.3
        for toy in toys:
            label = toybox.CATEGORIES.index(toy.category) + 1
            same = keep & (result["labels"] == label)
            box = torch.tensor([toy.box], dtype=torch.float32)
            total += 1
            found += bool((iou(box, result["boxes"][same], 0) > 0.5).any())
    assert total > 40
    assert found / total > 0.7


def test_a_field_can_be_changed_and_new_classes_get_fresh_heads():
    model = minimrcnn.mini(weights="TOYBOX", score_threshold=0.7, num_classes=3)
    assert model.architecture.score_threshold == 0.7
    assert model.roi_heads.box_predictor.cls_score.out_features == 3
