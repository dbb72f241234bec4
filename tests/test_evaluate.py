"""Evaluation: COCO's own figures, and what each of them does when the answers change."""

from __future__ import annotations

import copy
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from truth import CATEGORIES, OBJECTS, Oracle, detections, write_dataset

from minimrcnn import pasting
from minimrcnn.datasets.coco import ClassMap, CocoDataset, read_coco
from minimrcnn.engine import evaluate
from minimrcnn.errors import UserError
from minimrcnn.parts import Parts

# AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl, and for keypoints AP AP50 AP75 APm APl AR AR50
# AR75 ARm ARl: what the COCO API prints for the reference detections.
REFERENCE = {
    "segm": """0.3195452758576433 0.5622883972521636 0.29892653412086784 0.3873740315997837
        0.31018272403369485 0.3269339071005138 0.2682297225711534 0.41544868114906375
        0.4168394992198818 0.4694498622754236 0.37675922666197265 0.3814715099715099""",
    "bbox": """0.5045806987249628 0.6969727247299577 0.5729816669904824 0.5856257209410443
        0.5193996948036719 0.5013978986347466 0.38681277964578054 0.5936795762842003
        0.595352982877607 0.6398109626113442 0.5664205978994309 0.5642905982905982""",
    "keypoints": """0.5048844884488449 0.7227722772277227 0.6336633663366337 0.46633663366336636
        0.7504950495049505 0.5181818181818182 0.7272727272727273 0.6363636363636364
        0.4666666666666666 0.75""",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return write_dataset(tmp_path_factory.mktemp("truth"))


def measure(model: Oracle, dataset: CocoDataset) -> dict:
    return evaluate.evaluate(model, dataset, batch_size=2, device="cpu", workers=0)


def results_of(dataset: CocoDataset, objects: dict = OBJECTS) -> list[dict]:
    return evaluate.detect(Oracle(objects), dataset, batch_size=3, device="cpu", workers=0)


@pytest.mark.parametrize("kind", REFERENCE)
def test_reference_figures(kind: str, real_data: Path) -> None:
    folder = real_data / "cocoeval_reference"
    prefix = "keypoints_" if kind == "keypoints" else ""
    found = "keypoints_detections" if kind == "keypoints" else f"detections_{kind}"
    results = json.loads((folder / f"{found}.json").read_text())
    metrics = evaluate.coco_metrics(read_coco(folder / f"{prefix}ground_truth.json"), results, kind)
    names = evaluate.KEYPOINT_FIGURES if kind == "keypoints" else evaluate.FIGURES
    expected = [float(word) for word in REFERENCE[kind].split()]
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=0, atol=1e-12)


def test_right_answers_give_one(dataset: CocoDataset, capsys: pytest.CaptureFixture) -> None:
    metrics = measure(Oracle(OBJECTS), dataset)
    for kind in ("bbox", "segm"):
        assert metrics[kind] == pytest.approx({**dict.fromkeys(evaluate.FIGURES, 1.0), "AR1": 1.0})
    assert list(metrics["per_category"]) == list(CATEGORIES.values())
    one = {"AP": 1.0, "AP50": 1.0, "AR100": 1.0}
    for figures in metrics["per_category"].values():
        assert figures == {"bbox": pytest.approx(one), "segm": pytest.approx(one)}
    assert metrics["images"] == 4
    assert capsys.readouterr().out == ""  # COCOeval's own prints


def test_no_answers_give_zero(dataset: CocoDataset) -> None:
    metrics = measure(Oracle({}), dataset)
    for kind in ("bbox", "segm"):
        assert metrics[kind] == dict.fromkeys(evaluate.FIGURES, 0.0)
    assert metrics["per_category"]["bar"]["segm"] == {"AP": 0.0, "AP50": 0.0, "AR100": 0.0}


def test_one_wrong_label_costs(dataset: CocoDataset) -> None:
    (_, *box), *others = OBJECTS[25]
    metrics = measure(Oracle({**OBJECTS, 25: [(1, *box), *others]}), dataset)
    assert 0 < metrics["segm"]["AP"] < 1
    # The bars lose one of two; the discs gain a false positive ranked between two right ones.
    assert metrics["per_category"]["bar"]["bbox"]["AR100"] == 0.5
    assert metrics["per_category"]["frame"]["bbox"]["AP"] == pytest.approx(1.0)
    assert metrics["per_category"]["disc"]["bbox"]["AP"] < 1


def test_results_speak_the_data_sets_language(dataset: CocoDataset) -> None:
    results = {(r["image_id"], r["category_id"]): r for r in results_of(dataset)}
    assert sorted(results) == [(11, 3), (11, 7), (25, 3), (25, 7), (25, 40), (90, 7), (90, 40)]
    frame = results[11, 7]
    assert frame["bbox"] == [60.5, 20.0, 129.5, 130.0]  # xywh
    assert frame["segmentation"]["size"] == [160, 200]
    json.dumps(frame)  # plain types: counts a str, score a float


def test_a_model_without_masks_is_measured_by_its_boxes(dataset: CocoDataset) -> None:
    model = Oracle({})
    model.architecture = replace(model.architecture, masks=False)
    metrics = measure(model, dataset)
    assert "segm" not in metrics and metrics["bbox"]["AP"] == 0.0


def test_a_replaced_paste_is_used(dataset: CocoDataset) -> None:
    """A student's paste goes through whole pictures, and the package's own gives the same codes there."""
    image = detections(OBJECTS[25])
    codes = []
    for paste in (
        pasting.paste,
        lambda *args: pasting.paste(*args),
        lambda g, b, h, w, how: torch.ones(1, h, w),
    ):
        model = Oracle(OBJECTS, replace(Parts(), paste=paste))
        found = evaluate.coco_results(model, image, 25, (160, 200), dataset.class_map)
        codes.append([result["segmentation"] for result in found])
    assert codes[0] == codes[1]
    assert codes[2] != codes[0]


def test_a_crowd_is_neither_hit_nor_missed(dataset: CocoDataset) -> None:
    truth = copy.deepcopy(dataset.coco)
    truth.dataset["annotations"][1]["iscrowd"] = 1  # the large frame of picture 11
    truth.createIndex()
    inside = [(2, 70.0, 30.0, 110.0, 60.0), (2, 120.0, 30.0, 160.0, 60.0)]  # part of it, twice
    results = results_of(dataset, {**OBJECTS, 11: [OBJECTS[11][0], *inside]})
    assert evaluate.coco_metrics(truth, results, "bbox")["AP"] == pytest.approx(1.0)
    assert evaluate.coco_metrics(dataset.coco, results, "bbox")["AP"] < 0.9


def test_inputs_are_not_changed(dataset: CocoDataset) -> None:
    results = results_of(dataset)
    before = copy.deepcopy((dataset.coco.dataset, results))
    for kind in ("bbox", "segm"):
        evaluate.coco_metrics(dataset.coco, results, kind)
    assert (dataset.coco.dataset, results) == before


def test_a_mask_is_small_by_its_own_area(dataset: CocoDataset) -> None:
    """COCO.loadRes takes the area of the box if there is one: this false alarm would not count as small."""
    found = detections([(2, 10.0, 10.0, 120.0, 120.0), (2, 10.0, 20.0, 120.0, 130.0)])
    found["masks"] = torch.zeros(2, 28, 28)
    found["masks"][:, 0] = 1.0  # one row of the grid: some 500 pixels of a box of 12,100
    false, right = evaluate.coco_results(Oracle({}), found, 31, (160, 200), dataset.class_map)
    truth = copy.deepcopy(dataset.coco)
    truth.dataset["annotations"] = [{**right, "id": 1, "iscrowd": 0, "area": 500}]
    truth.createIndex()
    metrics = evaluate.coco_metrics(truth, [false, right], "segm")
    assert metrics["AR100"] == 1.0 and metrics["APs"] == pytest.approx(0.5)


def test_annotations_may_lack_area_and_iscrowd(dataset: CocoDataset) -> None:
    truth = copy.deepcopy(dataset.coco)
    for annotation in truth.dataset["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    truth.createIndex()
    results = results_of(dataset)
    for kind in ("bbox", "segm"):
        bare, full = (evaluate.coco_metrics(coco, results, kind) for coco in (truth, dataset.coco))
        assert bare == full


def test_some_pictures_only(dataset: CocoDataset) -> None:
    results = results_of(dataset, {11: OBJECTS[11]})
    assert evaluate.coco_metrics(dataset.coco, results, "segm", [11])["AP"] == pytest.approx(1.0)
    assert evaluate.coco_metrics(dataset.coco, results, "segm", [25, 90])["AP"] == 0.0
    nothing = evaluate.coco_metrics(dataset.coco, results, "segm", [31])
    assert nothing["AP"] == -1 and nothing["per_category"]["disc"]["AP"] == -1


@given(st.lists(st.tuples(st.sampled_from([11, 25, 31, 90]), st.integers(1, 3), *[st.integers(0, 90)] * 4)))
def test_overall_is_the_mean_over_categories(dataset: CocoDataset, raw: list[tuple]) -> None:
    answers: dict[int, list] = {}
    for image_id, label, x, y, w, h in raw:
        answers.setdefault(image_id, []).append(
            (label, float(x), float(y), float(x + w + 1), float(y + h + 1))
        )
    model = Oracle({})
    results = [
        result
        for image_id, objects in answers.items()
        for result in evaluate.coco_results(
            model, detections(objects), image_id, (160, 200), dataset.class_map
        )
    ]
    for kind in ("bbox", "segm"):
        metrics = evaluate.coco_metrics(dataset.coco, results, kind)
        for figure in ("AP", "AP50", "AR100"):
            mean = np.mean([figures[figure] for figures in metrics["per_category"].values()])
            assert metrics[figure] == pytest.approx(mean, abs=1e-12)
        by_id = sorted(
            results, key=lambda result: -result["image_id"]
        )  # which picture came first is no matter
        assert metrics == evaluate.coco_metrics(dataset.coco, by_id, kind)


def test_equal_names_get_their_ids(dataset: CocoDataset) -> None:
    truth = copy.deepcopy(dataset.coco)
    truth.dataset["categories"][2]["name"] = "disc"
    truth.createIndex()
    metrics = evaluate.coco_metrics(truth, results_of(dataset), "bbox")
    assert list(metrics["per_category"]) == ["disc (3)", "frame", "disc (40)"]


# ---------------------------------------------------------------- classes


def test_other_classes_are_refused(dataset: CocoDataset) -> None:
    folder = dataset.annotations.parents[1]
    model = ClassMap((3, 8, 40), ("disc", "frame", "rod"))
    with pytest.raises(UserError, match="2 of its 3 categories do not match the model") as caught:
        evaluate.open_split(folder, "val", model)
    message = str(caught.value)
    assert "7 'frame' (in the model: none)" in message and "40 'bar' (in the model: 'rod')" in message
    assert str(dataset.annotations) in message and "reset_heads" in message


def test_a_model_may_know_more(dataset: CocoDataset) -> None:
    """Torchvision's model knows 90 ids, ten of which no data set has: its labels are not the data set's."""
    model = ClassMap((1, 3, 7, 40), ("zero", "disc", "frame", "bar"))
    opened = evaluate.open_split(dataset.annotations.parents[1], "val", model)
    assert opened.class_map == model
    results = []
    for image_id, objects in OBJECTS.items():
        found = detections(objects)
        found["labels"] += 1  # as that model numbers them
        results += evaluate.coco_results(Oracle({}), found, image_id, (160, 200), opened.class_map)
    assert evaluate.coco_metrics(opened.coco, results, "segm")["AP"] == pytest.approx(1.0)


def test_the_annotations_are_read_once(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = [], io.open

    def noted(file: object, *rest: object, **named: object) -> object:
        opened.append(Path(str(file)))
        return original(file, *rest, **named)

    monkeypatch.setattr(io, "open", noted)
    for class_map in (dataset.class_map, ClassMap((1, 3, 7, 40), ("zero", "disc", "frame", "bar"))):
        evaluate.open_split(dataset.annotations.parents[1], "val", class_map)
    assert opened.count(dataset.annotations) == 2


# ---------------------------------------------------------------- around it


def test_inference_restores_the_mode() -> None:
    model = Oracle({}).train()
    with pytest.raises(ZeroDivisionError), evaluate.inference(model, "cpu"):
        assert not model.training and torch.is_inference_mode_enabled()
        _ = 1 / 0
    assert model.training


def test_table(dataset: CocoDataset) -> None:
    metrics = measure(Oracle(OBJECTS), dataset)
    metrics["bbox"]["APs"] = -1.0
    lines = evaluate.table(metrics).splitlines()
    assert lines[0].split() == ["box", "mask"] and lines[1].split()[0] == "category"
    head = lines.index("")  # the figures come last: 80 categories would scroll them away
    assert lines[head - 1].split() == ["bar", *["1.000"] * 6]
    figures = lines[head + 2 :]
    assert figures[0].split()[0] == "AP" and figures[0].split()[-2:] == ["1.000", "1.000"]
    assert figures[3].split()[-2:] == ["-", "1.000"]
    assert len(figures) == 12 and len({len(line) for line in figures}) == 1


def test_write_json_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "metrics.json"
    evaluate.write_json(path, {"AP": 0.1})
    full = OSError(28, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.json: No space left on device"):
        evaluate.write_json(path, {"AP": 0.2})
    assert json.loads(path.read_text()) == {"AP": 0.1}
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]
    with pytest.raises(UserError, match=r"cannot write .*below\.json"):
        evaluate.write_json(path / "below.json", {})
