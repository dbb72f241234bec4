"""The toybox: same seed, same pixels; every visible toy annotated; masks, boxes and RLE exact."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from minimrcnn.datasets import toybox, toybox_files, toybox_shapes
from minimrcnn.datasets.toybox import CATEGORIES, MIN_PIXELS, MIN_VISIBLE, pixel_hash, scene
from minimrcnn.datasets.toybox_dice import Dice
from minimrcnn.datasets.toybox_files import draw_toybox, sheet
from minimrcnn.datasets.toybox_grounds import GROUNDS
from minimrcnn.errors import UserError

# The generator is frozen: these change only together with toybox_dice.VERSION.
COMMITTED = {
    128: "d6e3dc872825b09facc7d6efb700e02e5611fdbd809ebe0fa9f01af07e6f64f5",
    256: "0dd6cfd346cf1cb3ea50b280513bc5126e8a255bb78d5cec08bf0c911930f73e",
}

# pycocotools 2.0 decodes through an __array__ without NumPy 2's copy keyword.
DECODE_WARNS = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def same(a: tuple, b: tuple) -> bool:
    (picture_a, toys_a), (picture_b, toys_b) = a, b
    return np.array_equal(picture_a, picture_b) and [
        (t.category, t.box, t.full_area, t.mask.tobytes()) for t in toys_a
    ] == [(t.category, t.box, t.full_area, t.mask.tobytes()) for t in toys_b]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, drawn by two threads."""
    out = tmp_path_factory.mktemp("toybox") / "data"
    draw_toybox(out, train=20, val=5, size=96, seed=3, workers=1)
    return out


@pytest.fixture(scope="module")
def pictures() -> list:
    return [scene(0, "val", index, 96) for index in range(200)]


# --- same seed, same pixels -------------------------------------------------------------------------


@pytest.mark.parametrize("size", COMMITTED)
def test_committed_hash(size):
    assert pixel_hash(0, "val", 8, size) == COMMITTED[size]


def test_hash_without_vector_instructions():
    """The same pixels when NumPy may use the CPU's oldest instructions only."""
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not features:
        pytest.skip("this NumPy has no vector instructions above its baseline to switch off")
    code = (
        "import sys, types; package = types.ModuleType('minimrcnn'); package.__path__ = ['minimrcnn']\n"
        "sys.modules['minimrcnn'] = package  # without its __init__, which imports torch\n"
        "from minimrcnn.datasets.toybox import pixel_hash; print(pixel_hash(0, 'val', 8, 128))"
    )
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    root = Path(toybox.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.stdout.strip() == COMMITTED[128], done.stderr


def test_pictures_are_independent_of_order():
    """(That two threads draw the same is seen in test_files_hold_the_scenes.)"""
    forward = [scene(5, "train", index, 96) for index in range(4)]
    backward = [scene(5, "train", index, 96) for index in (3, 2, 1, 0)][::-1]
    assert all(same(here, again) for here, again in zip(forward, backward, strict=True))


def test_seed_split_and_index_all_matter():
    keys = [(0, "val", 0), (1, "val", 0), (0, "train", 0), (0, "val", 1)]
    assert len({scene(*key, 96)[0].tobytes() for key in keys}) == len(keys)


def test_angle_table_is_far_from_ties():
    """No cosine lies so near the middle between two steps that another C library could round it otherwise."""
    for angle in range(toybox_shapes.TURN):
        for function in (math.cos, math.sin):
            scaled = function(2 * math.pi * angle / toybox_shapes.TURN) * 65536
            assert abs(scaled - math.floor(scaled) - 0.5) > 1e-6


def test_pixels_come_from_elementwise_ieee_operations_only():
    """An allow-list: of NumPy only exact elementwise functions, of math only sqrt (and one rounded table)."""
    exact = {"abs", "add", "arange", "array", "asarray", "bincount", "clip", "count_nonzero", "flatnonzero"}
    exact |= {"full", "maximum", "minimum", "ones", "pad", "rint", "sqrt", "stack", "where", "zeros_like"}
    exact |= {"ascontiguousarray", "asfortranarray", "packbits", "ndarray", "random", "PCG64"}
    exact |= {"float32", "int8", "int64", "uint8", "uint64"}
    modules = sorted(Path(toybox.__file__).parent.glob("toybox*.py"))
    assert {path.stem for path in modules} >= {"toybox", "toybox_dice", "toybox_grounds", "toybox_shapes"}
    trigonometric = []
    for module in modules:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        used = {"np": set(), "math": set()}
        for function in ast.walk(tree):
            if isinstance(function, ast.BinOp):
                assert not isinstance(function.op, ast.MatMult)
                if isinstance(function.op, ast.Pow):  # of two integers
                    assert all(
                        isinstance(side, ast.Constant | ast.UnaryOp)
                        for side in (function.left, function.right)
                    )
            if isinstance(function, ast.Attribute):
                # methods that would add floats in an order of NumPy's choice
                assert function.attr not in {"dot", "mean", "prod", "std", "sum", "cumsum"}
                if isinstance(function.value, ast.Name) and function.value.id in used:
                    used[function.value.id].add(function.attr)
        assert used["np"] <= exact, used["np"] - exact
        assert used["math"] <= {"sqrt", "pi", "cos", "sin"}
        trigonometric += [
            function.name
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            and any(
                isinstance(n, ast.Attribute) and n.attr in {"cos", "sin", "pi"} for n in ast.walk(function)
            )
        ]
    assert trigonometric == ["cos_sin"]


def test_canvas_stays_float32():
    for ground in GROUNDS:
        canvas, colours = ground(Dice("ground"), 96)
        assert (canvas.shape, canvas.dtype) == ((3, 96, 96), np.float32)
        assert colours
    for category in CATEGORIES:
        toy = toybox._make_toy(Dice("toy"), category, 40, 96)
        assert {toy.x.dtype, toy.y.dtype, toy.distance.dtype} == {np.dtype(np.float32)}


# --- the shapes ---------------------------------------------------------------------------------------


@given(knobs=st.tuples(*[st.floats(0, 0.999)] * 3), category=st.sampled_from(CATEGORIES))
@settings(max_examples=60, deadline=None)
def test_shapes_fill_the_unit_circle_and_no_more(knobs, category):
    grid = (np.arange(120, dtype=np.float32) + np.float32(0.5)) / 50 - np.float32(1.2)
    x, y = np.broadcast_arrays(grid, grid[:, None])
    distance = toybox_shapes.SHAPES[category](x, y, knobs)
    inside = distance < 0
    radius = toybox_shapes.length(x, y)[inside]
    assert 0.9 < radius.max() < 1.05
    assert inside.sum() / 2500 > 0.6
    # Near the edge a distance is never much steeper than 1 (the leaf's bend adds a little): antialiasing.
    steps = np.abs(np.diff(distance, axis=1)) * 50
    assert steps[np.abs(distance[:, 1:]) < 0.03].max() < 1.25


def test_holes_are_holes():
    """Ring, key, gear and cup have a hole; the other four have none."""
    holes = {}
    for category in CATEGORIES:
        grid = (np.arange(96, dtype=np.float32) + np.float32(0.5)) / 40 - np.float32(1.2)
        x, y = np.broadcast_arrays(grid, grid[:, None])
        outside = toybox_shapes.SHAPES[category](x, y, (0.4, 0.5, 0.5)) >= 0
        reached = np.zeros_like(outside)
        reached[0] = True
        while True:  # flood from the border
            grown = np.pad(reached, 1)
            grown = reached | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
            grown &= outside
            if np.array_equal(grown, reached):
                break
            reached = grown
        holes[category] = bool((outside & ~reached).any())
    assert {name for name, hole in holes.items() if hole} == {"ring", "key", "gear", "cup"}


@pytest.mark.parametrize("n", [3, 5, 6, 7, 8, 9, 10])
def test_fold_lands_in_one_wedge(n):
    x, y = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    folded_x, folded_y = toybox_shapes.fold(x, y, n)
    angle = np.arctan2(folded_y, folded_x)
    assert angle.min() > -1e-3
    assert angle.max() < math.pi / n + 1e-3
    np.testing.assert_allclose(np.hypot(folded_x, folded_y), np.hypot(x, y), rtol=1e-4)


# --- what is in the pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 96, 101, 128, 320])
def test_sizes(size):
    for index in range(6):
        picture, toys = scene(1, "val", index, size)
        assert (picture.shape, picture.dtype) == ((size, size, 3), np.uint8)
        assert picture.flags.c_contiguous
        assert all(toy.mask.shape == (size, size) and toy.mask.dtype == bool for toy in toys)


def test_masks_are_disjoint_and_large_enough(pictures):
    for _, toys in pictures:
        assert np.sum([toy.mask for toy in toys], axis=0, initial=0).max() <= 1
        for toy in toys:
            shown = np.count_nonzero(toy.mask)
            assert MIN_PIXELS <= shown <= toy.full_area
            assert shown >= MIN_VISIBLE * toy.full_area


def test_visible_part_lies_in_the_amodal_box(pictures):
    for picture, toys in pictures:
        for toy in toys:
            x0, y0, x1, y1 = toy.box
            rows, columns = np.nonzero(toy.mask)
            assert x0 <= columns.min() <= columns.max() < x1
            assert y0 <= rows.min() <= rows.max() < y1
            whole = x0 >= 0 and y0 >= 0 and max(x1, y1) <= len(picture)
            if whole and np.count_nonzero(toy.mask) == toy.full_area:
                assert toy.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_nothing_is_painted_that_is_not_annotated(monkeypatch):
    """Away from the annotated toys and their shadows a picture is the bare ground, to the last bit."""
    size, bare_pixels = 128, 0
    for index in range(30):
        picture, toys = scene(2, "train", index, size)
        with monkeypatch.context() as patch:
            patch.setattr(toybox, "compose", lambda dice, size: ([], np.full((size, size), -1, np.int8)))
            bare, none = scene(2, "train", index, size)
        assert none == []
        near = np.zeros((size, size), bool)
        reach = math.ceil(0.2 * 0.2 * size + toybox._shadow_edge(size)) + 3
        for toy in toys:
            x0, y0, x1, y1 = toy.box
            near[max(y0 - reach, 0) : max(y1 + reach, 0), max(x0 - reach, 0) : max(x1 + reach, 0)] = True
        assert np.array_equal(picture[~near], bare[~near])
        bare_pixels += np.count_nonzero(~near)
        for toy in toys:  # and every annotated toy is really there
            assert np.abs(picture.astype(int) - bare)[toy.mask].mean() > 15
    assert bare_pixels > 20_000  # the comparison was not empty


def test_counts_classes_and_sizes(pictures):
    counts = Counter(len(toys) for _, toys in pictures)
    assert set(counts) <= {0, *range(2, 9)}
    assert 1 <= counts[0] <= 14  # 3 %
    classes = Counter(toy.category for _, toys in pictures for toy in toys)
    assert set(classes) == set(CATEGORIES)
    mean = classes.total() / len(CATEGORIES)
    assert all(0.75 * mean < number < 1.3 * mean for number in classes.values()), classes
    # COCO's limits hold at size 256; areas shrink with the picture.
    areas = np.array([np.count_nonzero(toy.mask) for _, toys in pictures for toy in toys]) * (256 / 96) ** 2
    small, large = np.mean(areas < 32**2), np.mean(areas > 96**2)
    assert 0.14 < small < 0.26
    assert 0.2 < large < 0.36
    hidden = [np.count_nonzero(toy.mask) < 0.9 * toy.full_area for _, toys in pictures for toy in toys]
    assert 0.25 < np.mean(hidden) < 0.6
    pairs = [toys for _, toys in pictures if len({toy.category for toy in toys}) < len(toys)]
    assert len(pairs) > 40  # two of a class in one picture


@pytest.mark.parametrize("size", [0, 47, 5000])
def test_impossible_size(size):
    with pytest.raises(UserError, match="choose one inside"):
        scene(0, "val", 0, size)


# --- the folder ---------------------------------------------------------------------------------------


@DECODE_WARNS
def test_files_hold_the_scenes(folder):
    ids, annotation_ids = set(), []
    for split, count in (("train", 20), ("val", 5)):
        data = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert [image["file_name"] for image in data["images"]] == sorted(os.listdir(folder / split))
        assert [c["id"] for c in data["categories"]] == list(range(1, 9))
        assert [c["name"] for c in data["categories"]] == list(CATEGORIES)
        for index, image in enumerate(data["images"]):
            picture, toys = scene(3, split, index, 96)
            with Image.open(folder / split / image["file_name"]) as file:
                assert file.mode == "RGB"
                assert np.array_equal(np.asarray(file), picture)
            mine = [a for a in data["annotations"] if a["image_id"] == image["id"]]
            assert len(mine) == len(toys)
            for annotation, toy in zip(mine, toys, strict=True):
                assert CATEGORIES[annotation["category_id"] - 1] == toy.category
                assert isinstance(annotation["segmentation"]["counts"], str)
                assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), toy.mask)
                rows, columns = np.nonzero(toy.mask)
                width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
                assert annotation["bbox"] == [columns.min(), rows.min(), width, height]
                assert (annotation["area"], annotation["iscrowd"]) == (len(rows), 0)
        assert len(data["images"]) == count
        ids |= {image["id"] for image in data["images"]}
        annotation_ids += [annotation["id"] for annotation in data["annotations"]]
    assert len(ids) == 25
    assert len(set(annotation_ids)) == len(annotation_ids)


@DECODE_WARNS
def test_coco_api_loads_it(folder):
    coco = COCO(str(folder / "annotations" / "instances_train.json"))
    assert len(coco.getImgIds()) == 20
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_about_file(folder):
    about = json.loads((folder / "toybox.json").read_text())
    assert (about["seed"], about["size"], about["train"], about["val"]) == (3, 96, 20, 5)
    assert about["pixel_hash"]["val"] == pixel_hash(3, "val", 5, 96)


def test_number_of_workers_does_not_matter(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(toybox_files, "PICTURES_A_PROCESS", 5)  # so few are otherwise drawn by this process
    draw_toybox(tmp_path / "two", train=20, val=5, size=96, seed=3, workers=2)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 20 + 5 + 3
    for path in files:
        assert (tmp_path / "two" / path).read_bytes() == (folder / path).read_bytes()


def test_longer_run_starts_with_the_shorter(folder, tmp_path):
    draw_toybox(tmp_path / "longer", train=22, val=0, size=96, seed=3, workers=1)
    short, longer = (
        json.loads((at / "annotations/instances_train.json").read_text())
        for at in (folder, tmp_path / "longer")
    )
    assert longer["images"][:20] == short["images"]
    assert longer["annotations"][: len(short["annotations"])] == short["annotations"]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch, stop, workers):
    def stopped(path, content):  # in this process, which saves, whoever draws
        if path.name == "000017.png":
            raise stop
        return write(path, content)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", stopped)
    monkeypatch.setattr(toybox_files, "PICTURES_A_PROCESS", 5)
    with pytest.raises(stop):
        draw_toybox(tmp_path / "data", train=20, val=5, size=64, seed=0, workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that Ctrl-C reaches")
def test_control_c_ends_every_process(tmp_path):
    command = [sys.executable, "-m", "minimrcnn", "data", "toybox", "--out", str(tmp_path / "data")]
    with subprocess.Popen([*command, "--size", "64"], stderr=subprocess.PIPE, start_new_session=True) as run:
        said = b""
        while not re.search(rb"\| [1-9]\d*/2200 ", said):  # at least one picture is there
            more = run.stderr.read1()
            assert more, said
            said += more
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers too
        rest = run.stderr.read().decode()  # ends when the last process that could write to it has ended
    assert run.returncode == 130
    assert "minimrcnn: interrupted" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty; choose another folder or remove it"):
        draw_toybox(tmp_path, train=1, val=1, size=64, seed=0, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_existing_empty_folder_is_used(tmp_path):
    out = tmp_path / "empty"
    out.mkdir()
    draw_toybox(out, train=1, val=1, size=64, seed=0, workers=1)
    assert sorted(os.listdir(out)) == ["annotations", "toybox.json", "train", "val"]


@pytest.mark.parametrize(
    "wrong", [{"train": -1}, {"val": 100_000}, {"size": 20}, {"workers": 0}, {"train": 0, "val": 0}]
)
def test_impossible_numbers(tmp_path, wrong):
    with pytest.raises(UserError, match="choose"):
        draw_toybox(tmp_path / "data", **{"train": 1, "val": 1, "size": 64, "seed": 0, "workers": 1, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_sheet(tmp_path):
    sheet(tmp_path / "sheet.png", 0, 2, 2, 128)
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (2 * (2 * 128 + 8) - 4, 2 * (128 + 4) - 4)
    assert (tmp_path / "sheet.png").stat().st_size < 700_000
