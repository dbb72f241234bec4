"""`data check`: one planted defect at a time is found by its id and kind; a clean set gives none."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from minimrcnn.datasets.check import check_annotations, check_dataset, check_split, print_report
from minimrcnn.datasets.check_geometry import check_masks, check_segmentations
from minimrcnn.datasets.findings import Findings, Problem
from minimrcnn.datasets.segmentations import run_lengths
from minimrcnn.errors import UserError

WIDTH, HEIGHT = 60, 40


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(number: int, image_id: int, x: int, y: int, w: int, h: int) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "iscrowd": 0,
        "area": w * h,
        "bbox": [x, y, w, h],
        "segmentation": [polygon(x, y, w, h)],
    }


def rle(x: int, y: int, w: int, h: int, *, compressed: bool) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    if compressed:
        code = coco_mask.encode(mask)
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


def clean() -> dict:
    """Three pictures, six objects: polygons, both forms of RLE, a crowd, a picture in a sub-folder."""
    annotations = [
        annotation(11, 1, 5, 5, 20, 10),
        annotation(12, 1, 30, 20, 30, 20),  # ends at the picture's corner
        annotation(13, 2, 0, 0, 60, 40),  # the whole picture
        annotation(14, 2, 10, 10, 8, 8),
        annotation(15, 3, 40, 25, 12, 9),
        annotation(16, 3, 2, 3, 9, 30),
    ]
    annotations[3]["segmentation"] = rle(10, 10, 8, 8, compressed=True)
    annotations[4] |= {"segmentation": rle(40, 25, 12, 9, compressed=False), "iscrowd": 1}
    names = {1: "a.png", 2: "b.jpg", 3: "sub/c.png"}
    return {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in names.items()
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}, {"id": 7, "name": "other"}],
    }


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/c.png"):
        picture().save(tmp_path / "train" / name)
    return tmp_path


def write(folder: Path, data: object, split: str = "train") -> Path:
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
    return folder


def found(problems: list[Problem]) -> list[tuple[str, str, str]]:
    return [(p.kind, p.where.removeprefix("instances_train.json: "), p.severity) for p in problems]


@pytest.mark.parametrize("cheap", [False, True])
def test_a_clean_set_gives_nothing(folder, cheap):
    assert check_dataset(write(folder, clean()), cheap=cheap) == []


def test_crowds_alone_train_nothing(folder):
    data = clean()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    assert ("only_crowds", "annotations", "note") in found(check_dataset(write(folder, data)))


# Each row: how the clean set is spoilt, and the one (kind, where, severity) that must come of it.
A12, A14, A15, A16 = (f"annotation {n} (image {i})" for n, i in ((12, 1), (14, 2), (15, 3), (16, 3)))
CHEAP = [
    (lambda d: d.pop("images"), "missing_key", "top level", "error"),
    (lambda d: d.update(annotations={}), "missing_key", "top level", "error"),
    (lambda d: d["images"].append("x"), "malformed_image", "images[3] (id None)", "error"),
    (lambda d: d["annotations"][1].update(iscrowd="yes"), "malformed_iscrowd", A12, "error"),
    (lambda d: d["annotations"][1].update(iscrowd=2), "malformed_iscrowd", A12, "error"),
    (lambda d: d["annotations"][1].update(area=-3), "malformed_area", A12, "error"),
    (lambda d: d["annotations"][1].update(area="large"), "malformed_area", A12, "error"),
    (
        lambda d: d["categories"][1].update(name="thing"),
        "duplicate_category_name",
        "category 'thing'",
        "note",
    ),
    (
        lambda d: d["images"].append({**d["images"][0], "id": "9"}),
        "malformed_image",
        "images[3] (id '9')",
        "error",
    ),
    (
        lambda d: d["images"].append({"id": 9, "width": 1, "height": 1}),
        "malformed_image",
        "images[3] (id 9)",
        "error",
    ),
    (
        lambda d: d["images"].append({**d["images"][0], "id": 9, "width": 0}),
        "malformed_image",
        "images[3] (id 9)",
        "error",
    ),
    (
        lambda d: d["images"].append({**d["images"][0], "id": 9, "height": True}),
        "malformed_image",
        "images[3] (id 9)",
        "error",
    ),
    (lambda d: d["images"].append(dict(d["images"][1])), "duplicate_image_id", "image 2", "error"),
    (lambda d: d["images"].append({**d["images"][1], "id": 9}), "no_annotations", "image 9", "note"),
    (lambda d: d["images"][2].update(file_name="sub/d.png"), "missing_picture", "image 3", "error"),
    (lambda d: d["images"][2].update(file_name="nowhere/c.png"), "missing_picture", "image 3", "error"),
    (lambda d: d["images"][2].update(file_name="../train/a.png"), "unsafe_path", "image 3", "error"),
    (lambda d: d["images"][2].update(file_name="sub\\..\\..\\c.png"), "unsafe_path", "image 3", "error"),
    (lambda d: d["images"][2].update(file_name="/etc/hostname"), "unsafe_path", "image 3", "error"),
    (lambda d: d["images"][2].update(file_name="C:/c.png"), "unsafe_path", "image 3", "error"),
    (
        lambda d: d["categories"].append(dict(d["categories"][1])),
        "duplicate_category_id",
        "category 7",
        "error",
    ),
    (lambda d: d["categories"].append({"id": 0, "name": "x"}), "category_zero", "category 0", "note"),
    (lambda d: d["categories"].append({"name": "x"}), "malformed_category", "categories[2]", "error"),
    (lambda d: d["annotations"][1].update(category_id=5), "unknown_category", A12, "error"),
    (lambda d: d["annotations"][1].update(image_id=8), "unknown_image", "annotation 12 (image 8)", "error"),
    (
        lambda d: d["annotations"][1].update(id=11),
        "duplicate_annotation_id",
        "annotation 11 (image 1)",
        "error",
    ),
    (lambda d: d["annotations"][1].update(id=0), "annotation_zero", "annotation 0 (image 1)", "note"),
    (
        lambda d: d["annotations"][1].update(id=None),
        "malformed_annotation",
        "annotations[1] (id None, image 1)",
        "error",
    ),
    (
        lambda d: d["annotations"][1].update(image_id=[1]),
        "malformed_annotation",
        "annotations[1] (id 12, image [1])",
        "error",
    ),
    (lambda d: d["annotations"][1].pop("bbox"), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, "3", 4]), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, float("inf"), 4]), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[1, 2, 10**400, 4]), "malformed_box", A12, "error"),
    (lambda d: d["annotations"][1]["bbox"].__setitem__(2, 0), "flat_box", A12, "error"),
    (lambda d: d["annotations"][1]["bbox"].__setitem__(3, -5), "flat_box", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[70, 20, 30, 20]), "box_outside", A12, "error"),
    (lambda d: d["annotations"][1].update(bbox=[30, 22, 30, 20]), "box_outside", A12, "note"),
    (lambda d: d["annotations"][5].update(bbox=[-2, 3, 9, 30]), "box_outside", A16, "note"),
    (lambda d: d["annotations"][1].pop("segmentation"), "empty_mask", A12, "error"),
    (lambda d: d["annotations"][1].update(segmentation=[]), "empty_mask", A12, "error"),
    (lambda d: d["annotations"][1].update(segmentation=[[]]), "malformed_polygon", A12, "error"),
    (lambda d: d["annotations"][1].update(segmentation="x"), "malformed_polygon", A12, "error"),
    (
        lambda d: d["annotations"][1].update(segmentation=[30, 20, 60, 20, 60, 40]),
        "malformed_polygon",
        A12,
        "error",
    ),
    (lambda d: d["annotations"][1]["segmentation"].append([1, 2, 3, 4]), "malformed_polygon", A12, "error"),
    (lambda d: d["annotations"][1]["segmentation"][0].append(1), "malformed_polygon", A12, "error"),
    (
        lambda d: d["annotations"][1]["segmentation"][0].__setitem__(3, "20"),
        "malformed_polygon",
        A12,
        "error",
    ),
    (
        lambda d: d["annotations"][1]["segmentation"][0].__setitem__(3, float("nan")),
        "malformed_polygon",
        A12,
        "error",
    ),
    (
        lambda d: d["annotations"][3]["segmentation"].update(size=[WIDTH, HEIGHT]),
        "malformed_rle",
        A14,
        "error",
    ),
    (lambda d: d["annotations"][3]["segmentation"].update(counts=""), "malformed_rle", A14, "error"),
    (lambda d: d["annotations"][3]["segmentation"].update(counts="12 34"), "malformed_rle", A14, "error"),
    (lambda d: d["annotations"][3]["segmentation"].update(counts="0o"), "malformed_rle", A14, "error"),
    (lambda d: d["annotations"][3]["segmentation"].pop("counts"), "malformed_rle", A14, "error"),
    (lambda d: d["annotations"][4]["segmentation"]["counts"].append(1), "malformed_rle", A15, "error"),
    (lambda d: d["annotations"][4]["segmentation"].update(counts=[2401, -1]), "malformed_rle", A15, "error"),
    (lambda d: d["annotations"][4]["segmentation"].update(counts=[2399.0, 1]), "malformed_rle", A15, "error"),
]
DECODED = [
    (
        lambda d: d["annotations"].append({**d["annotations"][1], "id": 99}),
        "same_object_twice",
        "image 1",
        "note",
    ),
    # "Q[2O" is the runs 2401, -1: the right sum, and no mask
    (lambda d: d["annotations"][3]["segmentation"].update(counts="Q[2O"), "malformed_rle", A14, "error"),
    (lambda d: d["annotations"][3]["segmentation"].update(counts="0123"), "malformed_rle", A14, "error"),
    (
        lambda d: d["annotations"][1]["segmentation"][0].__setitem__(0, 1e12),
        "malformed_polygon",
        A12,
        "error",
    ),
    (lambda d: d["annotations"][3].update(bbox=[40, 10, 8, 8]), "mask_outside_box", A14, "error"),
    (
        lambda d: d["annotations"][3].update(segmentation=rle(40, 20, 8, 8, compressed=True)),
        "mask_outside_box",
        A14,
        "error",
    ),
    (lambda d: d["annotations"][4].update(bbox=[40, 25, 17, 9]), "mask_outside_box", A15, "note"),
    (
        lambda d: d["annotations"][4].update(segmentation=rle(0, 0, 0, 0, compressed=False)),
        "empty_mask",
        A15,
        "error",
    ),
    (
        lambda d: d["annotations"][5].update(bbox=[2, 3, 0.4, 9], segmentation=[polygon(2.1, 3, 0.2, 9)]),
        "empty_mask",
        A16,
        "note",
    ),
    (
        lambda d: d["images"][2].update(file_name="a.png", width=WIDTH - 1),
        "size_mismatch",
        "image 3",
        "error",
    ),
]


@pytest.mark.parametrize(("spoil", "kind", "where", "severity"), CHEAP)
@pytest.mark.parametrize("cheap", [True, False])
def test_a_planted_defect_is_found_without_decoding(folder, spoil, kind, where, severity, cheap):
    data = clean()
    spoil(data)
    problems = check_dataset(write(folder, data), cheap=cheap)
    expected = (kind, where, severity)
    if cheap:
        assert found(problems) == [expected]
        assert len(problems[0].message) > 20
    else:  # a wrong box also disagrees with its mask, which is said too
        assert expected in found(problems)
        assert {p.kind for p in problems} <= {kind, "mask_outside_box"}


@pytest.mark.parametrize(("spoil", "kind", "where", "severity"), DECODED)
def test_a_planted_defect_that_takes_decoding(folder, spoil, kind, where, severity):
    data = clean()
    spoil(data)
    if kind == "size_mismatch":  # masks of another size would be reported as well
        data["annotations"] = [
            entry for entry in data["annotations"] if entry["image_id"] != 3 or entry["id"] == 16
        ]
    assert check_dataset(write(folder, data), cheap=True) == []
    assert found(check_dataset(folder)) == [(kind, where, severity)]


def test_several_defects_are_all_reported(folder):
    data = clean()
    data["annotations"][0]["bbox"][2] = 0
    data["annotations"][1]["category_id"] = 99
    data["images"][2]["file_name"] = "gone.png"
    kinds = {problem.kind for problem in check_dataset(write(folder, data))}
    assert kinds == {"flat_box", "unknown_category", "missing_picture"}


def test_a_set_without_any_mask_gets_one_note(folder):
    data = clean()
    for entry in data["annotations"]:
        del entry["segmentation"]
    assert found(check_dataset(write(folder, data))) == [("no_masks", "annotations", "note")]


def test_a_set_without_objects_or_without_pictures(folder):
    data = clean() | {"annotations": []}
    assert found(check_dataset(write(folder, data))) == [("no_annotations", "images 1, 2, 3", "note")]
    data = clean() | {"annotations": [], "images": []}
    assert found(check_dataset(write(folder, data))) == [("no_images", "images", "error")]


# ---------------------------------------------------------------- boxes as a set


def many(number: int, seed: int = 0) -> dict:
    """`number` random boxes in one picture, without masks."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, [WIDTH - 2, HEIGHT - 2], (number, 2))
    extent = 1 + rng.integers(0, [WIDTH, HEIGHT] - corner)
    data = clean()
    data["annotations"] = [
        annotation(n + 1, 1 + n % 3, *map(int, (*xy, *wh))) | {"segmentation": None}
        for n, (xy, wh) in enumerate(zip(corner, extent, strict=True))
    ]
    return data


def boxes_of(data: dict, folder: Path) -> list[Problem]:
    problems = check_annotations(data, folder / "train", file="x", cheap=True)
    return [problem for problem in problems if problem.kind not in ("no_masks", "no_annotations")]


def test_corners_instead_of_width_and_height_are_said_once_for_the_set(folder):
    data = clean()
    for entry in data["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    # With the masks too: that each lies outside its box is the consequence, not one more problem.
    [cheap], [problem] = (check_dataset(write(folder, data), cheap=cheap) for cheap in (True, False))
    assert cheap == problem
    assert (problem.kind, problem.severity) == ("xyxy_boxes", "error")
    assert problem.where == "instances_train.json: images 1, 3"
    assert "2 of 6 boxes" in problem.message  # the others stay inside whichever way they are read
    assert "[30, 20, 60, 40] of annotation 12 (image 1)" in problem.message


@given(st.integers(5, 60), st.integers(0, 10_000))
def test_right_boxes_are_never_taken_for_corners(tmp_path_factory, number, seed):
    kinds = {problem.kind for problem in boxes_of(many(number, seed), Path("/nowhere"))}
    assert kinds == {"missing_picture"}


@pytest.mark.parametrize("seed", range(5))
def test_random_corners_are_recognised(folder, seed):
    data = many(40, seed)
    for entry in data["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    assert [problem.kind for problem in boxes_of(data, folder)] == ["xyxy_boxes"]


def test_one_box_written_as_corners_gets_a_hint(folder):
    data = many(40)
    data["annotations"][7]["bbox"] = [40, 30, 58, 39]
    [problem] = boxes_of(data, folder)
    assert (problem.kind, problem.severity) == ("box_outside", "error")
    assert "annotation 8 (image 2)" in problem.where
    assert "Read as [x1, y1, x2, y2] it would fit" in problem.message


def test_some_boxes_written_as_corners_are_named_one_by_one(folder):
    data = many(40)
    for entry in data["annotations"][:10]:
        entry["bbox"] = [40, 30, 58, 39]
    assert [problem.kind for problem in boxes_of(data, folder)] == ["box_outside"] * 10


def test_small_boxes_in_the_top_left_that_could_be_either_are_not_taken_for_corners(folder):
    data = many(40)
    for entry in data["annotations"]:
        entry["bbox"] = [2, 2, 20, 20]
    data["annotations"][7]["bbox"] = [40, 30, 58, 39]
    assert [problem.kind for problem in boxes_of(data, folder)] == ["box_outside"]


def test_a_box_may_leave_the_picture_by_rounding(folder):
    data = many(10)
    data["annotations"][3]["bbox"] = [-0.9, -0.9, 60, 40]
    data["annotations"][4]["bbox"] = [0.9, 0.9, 60, 40]
    assert boxes_of(data, folder) == []


@pytest.mark.parametrize(
    ("number", "image_id", "box", "severity"),
    [
        (918, 200365, [29.65, 38.33, 1.03, 0.0], "note"),
        (2206849, 550395, [9.98, 18.56, 5.54, 0.0], "note"),
        (918, 200365, [29.65, 38.33, 1.03, -1.0], "error"),
        (918, 550395, [29.65, 38.33, 1.03, 0.0], "error"),
        (919, 200365, [29.65, 38.33, 1.03, 0.0], "error"),
    ],
)
def test_the_two_flat_boxes_of_coco_itself_are_notes(folder, number, image_id, box, severity):
    data = many(10)
    data["images"][0]["id"] = image_id
    for entry in data["annotations"]:
        entry["image_id"] = image_id if entry["image_id"] == 1 else entry["image_id"]
    data["annotations"][3] |= {"id": number, "image_id": image_id, "bbox": box}
    assert [(p.kind, p.severity) for p in boxes_of(data, folder)] == [("flat_box", severity)]


# ---------------------------------------------------------------- masks


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_rle_string_is_either_a_mask_of_the_picture_or_reported(counts):
    data = clean()
    data["annotations"] = data["annotations"][3:4]
    data["annotations"][0]["segmentation"]["counts"] = counts
    problems, images = Findings("x"), {2: data["images"][1]}
    check_masks(check_segmentations(data["annotations"], images, problems), images, problems)
    if not {"malformed_rle"} & {problem.kind for problem in problems}:
        assert run_lengths(data["annotations"][0]["segmentation"], WIDTH, HEIGHT).sum() == HEIGHT * WIDTH


# ---------------------------------------------------------------- pictures


def test_a_truncated_picture_is_found_only_by_decoding(folder):
    write(folder, clean())
    path = folder / "train" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    assert check_dataset(folder, cheap=True) == []
    [problem] = check_dataset(folder)
    assert found([problem]) == [("unreadable_picture", "image 2", "error")]
    assert str(path) in problem.message


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture(folder, content):
    (folder / "train" / "a.png").write_bytes(content)
    assert found(check_dataset(write(folder, clean()))) == [("unreadable_picture", "image 1", "error")]


@pytest.mark.parametrize(("orientation", "fits"), [(1, False), (3, False), (5, True), (6, True), (8, True)])
def test_a_picture_that_exif_turns_may_be_stated_either_way(folder, orientation, fits):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().resize((HEIGHT, WIDTH)).save(
        folder / "train" / "b.jpg", exif=exif
    )  # stored 40 x 60, stated 60 x 40
    problems = check_dataset(write(folder, clean()))
    assert found(problems) == ([] if fits else [("size_mismatch", "image 2", "error")])
    picture().save(folder / "train" / "b.jpg", exif=exif)  # stored as stated
    assert check_dataset(folder) == []


# ---------------------------------------------------------------- files, splits, report


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2", "\x00", "[" * 200_000])
def test_malformed_json_is_said_with_its_file(folder, text):
    (folder / "annotations" / "instances_train.json").write_text(text)
    [problem] = check_dataset(folder)
    assert problem.kind == "malformed_json"
    assert problem.where.endswith("instances_train.json")


def test_json_of_another_kind(folder):
    kinds = [problem.kind for problem in check_dataset(write(folder, [1, 2]))]
    assert kinds == ["missing_key"] * 3


def test_no_data_set(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        check_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"instances_train\*\.json"):
        check_dataset(tmp_path)


def test_every_split_is_checked_or_the_one_asked_for(folder):
    write(folder, clean())
    data = clean()
    data["annotations"][0]["category_id"] = 1
    (folder / "train").rename(folder / "train2017")
    os.symlink(folder / "train2017", folder / "val2017")
    (folder / "annotations" / "instances_train.json").rename(
        folder / "annotations" / "instances_train2017.json"
    )
    write(folder, data, "val2017")
    assert [p.where for p in check_dataset(folder)] == ["instances_val2017.json: annotation 11 (image 1)"]
    assert check_dataset(folder, split="train") == []
    assert len(check_dataset(folder, split="val")) == 1
    file = folder / "annotations" / "instances_val2017.json"
    assert check_split(file, folder / "train2017") == check_dataset(folder, split="val")


def test_the_report_groups_counts_and_cuts():
    problems = [Problem("odd", f"image {n}", "is odd", "note") for n in range(12)]
    problems += [Problem("bad", "image 3", "is bad")]
    out = io.StringIO()
    assert print_report(problems, limit=2, file=out) == 1
    assert out.getvalue().splitlines() == [
        "error: bad (1)",
        "  image 3: is bad",
        "note: odd (12)",
        "  image 0: is odd",
        "  image 1: is odd",
        "  ... and 10 more",
        "1 error, 12 notes",
    ]
    out = io.StringIO()
    assert print_report([], file=out) == 0
    assert out.getvalue() == "no problem found\n"


def test_the_cheap_part_is_quick(folder):
    """100,000 polygons: the limit is ten times what it takes, and a tenth of what decoding would take."""
    data = many(1000)
    ring = [float(v) for v in np.random.default_rng(0).uniform(0, 40, 60)]
    entries = [entry | {"segmentation": [ring]} for entry in data["annotations"] * 100]
    data["annotations"] = [entry | {"id": n + 1} for n, entry in enumerate(entries)]
    start = time.process_time()
    assert check_annotations(data, folder / "train", file="x", cheap=True) == []
    assert time.process_time() - start < 5


REAL = os.environ.get("MINIMRCNN_REAL_DATA")


@pytest.mark.skipif(REAL is None, reason="MINIMRCNN_REAL_DATA is not set: no real data sets here")
@pytest.mark.parametrize("name", ["nuclei", "coco_sample"])
def test_real_data_is_clean(name):
    errors = [problem for problem in check_dataset(Path(REAL) / name) if problem.severity == "error"]
    assert errors == []
