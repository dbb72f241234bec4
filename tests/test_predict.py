"""Prediction: what is written, what is drawn of it, and what a bad picture does to the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from truth import OBJECTS, Oracle, write_dataset

from minimrcnn.datasets.coco import CocoDataset
from minimrcnn.engine.evaluate import coco_metrics
from minimrcnn.engine.predict import draw_gallery, evenly_spaced, overlay_names, predict
from minimrcnn.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    return write_dataset(tmp_path_factory.mktemp("truth"))


def run(dataset: CocoDataset, paths: list[Path], out: Path, score: float = 0.5) -> list[str]:
    return predict(Oracle(OBJECTS), dataset.class_map, paths, out, score=score, device="cpu")


def test_results_are_coco_results(dataset: CocoDataset, tmp_path: Path) -> None:
    paths = [dataset.images / f"{i}.png" for i in (25, 31, 90)]
    assert run(dataset, paths, tmp_path / "a" / "b") == []
    results = json.loads((tmp_path / "a" / "b" / "predictions.json").read_text())
    assert [r["image_id"] for r in results] == [1, 1, 1, 3, 3]
    assert results[0] | {"segmentation": None, "score": None} == {
        "image_id": 1,
        "category_id": 40,
        "bbox": [10.0, 10.0, 80.0, 40.0],
        "score": None,
        "segmentation": None,
        "file_name": str(paths[0]),
        "category_name": "bar",
    }
    ids = {1: 25, 3: 90}
    as_data_set = [{**r, "image_id": ids[r["image_id"]]} for r in results]
    assert coco_metrics(dataset.coco, as_data_set, "segm", [25, 90])["AP"] == pytest.approx(1.0)


def test_overlays_draw_what_scores_enough(dataset: CocoDataset, tmp_path: Path) -> None:
    path = dataset.images / "90.png"  # scores .9 and .88
    drawn = []
    for score in (0.5, 0.89, 0.95):
        run(dataset, [path], tmp_path / str(score), score)
        assert len(json.loads((tmp_path / str(score) / "predictions.json").read_text())) == 2
        with Image.open(tmp_path / str(score) / "90.png") as overlay:
            assert overlay.size == (800, 640)  # 200 x 160, enlarged so that labels can be read
            drawn.append(np.asarray(overlay.convert("RGB")).astype(int))
    frame, bar = (slice(30, 60), slice(200, 400)), (slice(405, 430), slice(650, 710))
    plain = drawn[2]
    assert (drawn[0][frame] != plain[frame]).mean() > 0.5 and (drawn[0][bar] != plain[bar]).mean() > 0.5
    assert (drawn[1][frame] != plain[frame]).mean() > 0.5 and (drawn[1][bar] == plain[bar]).all()


def test_bad_pictures_do_not_stop_the_others(dataset: CocoDataset, tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.png", tmp_path / "text.png"
    text.write_text("not a picture")
    good = dataset.images / "90.png"
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    problems = run(dataset, [missing, good, text, cut], tmp_path / "out")
    assert len(problems) == 3
    for problem, path in zip(problems, (missing, text, cut), strict=True):
        assert str(path) in problem
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["90.png", "predictions.json"]
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {r["image_id"] for r in results} == {2}


def test_a_full_disk_leaves_the_old_results(
    dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dataset.images / "90.png"
    run(dataset, [path], tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    whole = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "90.png":
            raise OSError(28, "No space left on device")
        whole(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*90\.png: No space left"):
        run(dataset, [path], tmp_path, score=0.95)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(dataset: CocoDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the folder .*file"):
        run(dataset, [dataset.images / "90.png"], tmp_path / "file")


def test_gallery(dataset: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minimrcnn import show

    shown = {}
    monkeypatch.setattr(show, "save_gallery", lambda path, rows, names, title: shown.update(locals()))
    draw_gallery(Oracle({25: OBJECTS[25]}), dataset, tmp_path / "gallery.png", device="cpu")
    assert [row.title for row in shown["rows"]] == [f"image {i}" for i in (11, 25, 31, 90)]
    assert [len(row.truth.boxes) for row in shown["rows"]] == [2, 3, 0, 2]
    assert [len(row.prediction.boxes) for row in shown["rows"]] == [0, 3, 0, 0]
    assert "4 of 4 pictures, evenly spaced in the sorted list of image ids" in shown["title"]
    row = shown["rows"][1]
    np.testing.assert_array_equal(np.stack(row.prediction.masks), row.truth.masks.numpy())
    np.testing.assert_array_equal(row.prediction.boxes, row.truth.boxes.numpy())
    assert list(row.prediction.labels) == row.truth.labels.tolist()


@given(st.lists(st.integers(), unique=True), st.integers(2, 20))
def test_evenly_spaced(items: list[int], count: int) -> None:
    items.sort()
    chosen = evenly_spaced(items, count)
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(items)
    assert len(chosen) == min(count, len(items))
    if items:
        assert (chosen[0], chosen[-1]) == (items[0], items[-1])
    gaps = np.diff([items.index(item) for item in chosen])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@given(st.lists(st.sampled_from(["a/cat.jpg", "b/cat.jpg", "Cat.png", "cat_2.png", "dog.jpeg"])))
def test_overlays_do_not_overwrite_each_other(names: list[str]) -> None:
    given_names = overlay_names([Path(name) for name in names])
    assert len({name.lower() for name in given_names}) == len(names)
    for name, path in zip(given_names, names, strict=True):
        assert name.startswith(Path(path).stem) and name.endswith(".png")
