"""What is wrong with a picture or a target is said at the door, by picture and object."""

from __future__ import annotations

import math

import pytest
import torch
from little import little_model, scene

from minimrcnn.structures import MaskCrops


@pytest.fixture(scope="module")
def model():
    return little_model()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "at least one"),
        (torch.rand(3, 40, 40), ValueError, "want a list"),
        ([torch.rand(3, 40, 40), torch.rand(1, 40, 40)], ValueError, r"images\[1\].*\(1, 40, 40\)"),
        ([torch.rand(40, 40)], ValueError, r"images\[0\].*\(40, 40\)"),
        ([torch.rand(3, 0, 40)], ValueError, r"images\[0\].*\(3, 0, 40\)"),
        (["cat.jpg"], ValueError, r"images\[0\].*got str"),
        ([torch.zeros(3, 40, 40, dtype=torch.int64)], TypeError, r"images\[0\].*int64"),
        ([torch.rand(3, 40, 40), torch.full((3, 40, 40), math.nan)], ValueError, r"images\[1\].*NaN"),
        ([torch.full((3, 40, 40), math.inf)], ValueError, r"images\[0\].*Inf"),
        ([torch.rand(3, 40, 40) * 255], ValueError, r"images\[0\].*0\.\.1"),
        ([torch.rand(3, 40, 40) * 4 - 2], ValueError, r"images\[0\].*subtracts the mean"),
        (
            [torch.rand(3, 40, 40), torch.rand(3, 40, 40, device="meta")],
            ValueError,
            r"images\[1\] is on meta",
        ),
    ],
)
def test_pictures_are_checked(model, images, error, message):
    with pytest.raises(error, match=message):
        model.run(images, detections=True)


def test_one_dict_is_no_list_of_targets(model):
    images, targets = scene()
    with pytest.raises(TypeError, match="one a picture; got one dict"):
        model.run(images[:1], targets[0], losses=True)


def broken(**changes):
    """The second of two targets changed; a value of None takes its key away."""
    images, targets = scene()
    targets[1] = {k: v for k, v in (targets[1] | changes).items() if v is not None}
    return images, targets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, r"targets\[1\] has no 'boxes'.*'labels'"),
        ({"labels": None}, r"targets\[1\] has no 'labels'"),
        ({"masks": None}, r"targets\[1\] has no 'masks'"),
        ({"boxes": torch.rand(2, 5)}, r"targets\[1\]\['boxes'\].*\(2, 5\)"),
        ({"boxes": torch.ones(2, 4, dtype=torch.int64)}, r"targets\[1\]\['boxes'\].*int64"),
        ({"boxes": [[1, 2, 3, 4]]}, r"targets\[1\]\['boxes'\].*got list"),
        ({"labels": torch.ones(3, dtype=torch.int64)}, r"targets\[1\]\['labels'\].*\(3,\)"),
        ({"labels": torch.ones(2)}, r"targets\[1\]\['labels'\].*float32"),
        ({"labels": [1, 2]}, r"targets\[1\]\['labels'\].*got list"),
        ({"masks": torch.ones(2, 80, 71)}, r"targets\[1\]\['masks'\].*\(2, 80, 70\).*\(2, 80, 71\)"),
        ({"masks": torch.ones(3, 80, 70)}, r"targets\[1\]\['masks'\].*\(3, 80, 70\)"),
        ({"masks": [1, 2]}, r"targets\[1\]\['masks'\].*got list"),
        ({"masks": MaskCrops.from_dense(torch.ones(3, 80, 70))}, r"targets\[1\]\['masks'\].*want 2.*got 3"),
        (
            {"boxes": torch.tensor([[1.0, 1, 9, 9], [30, 30, 10, 12]])},
            r"targets\[1\]\['boxes'\]\[1\] = \[30.*not \(x, y, width, height\)",
        ),
        ({"boxes": torch.tensor([[5.0, 5, 5, 9], [1, 1, 9, 9]])}, r"\['boxes'\]\[0\].*x1 < x2"),
        ({"boxes": torch.tensor([[1.0, 1, 9, math.nan], [1, 1, 9, 9]])}, r"\['boxes'\]\[0\].*finite"),
        ({"boxes": torch.tensor([[1.0, 1, 9, math.inf], [1, 1, 9, 9]])}, r"\['boxes'\]\[0\].*finite"),
        ({"labels": torch.tensor([1, 0])}, r"\['labels'\]\[1\] = 0.*background"),
        ({"labels": torch.tensor([4, 1])}, r"\['labels'\]\[0\] = 4: want 1\.\.3"),
    ],
)
def test_targets_are_checked(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model.run(*broken(**changes), losses=True)


def test_targets_must_be_there_and_one_a_picture(model):
    images, targets = scene()
    with pytest.raises(ValueError, match="2 images but 1 targets"):
        model.run(images, targets[:1], losses=True)
    with pytest.raises(ValueError, match="losses need targets"):
        model.run(images, losses=True)
