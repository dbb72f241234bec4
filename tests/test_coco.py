"""The COCO reader: pictures of every kind, masks pixel for pixel, and bad input by name."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle_tools

from minimrcnn.datasets.coco import (
    ClassMap,
    CocoDataset,
    Request,
    find_split,
    flip_boxes,
    read_coco,
    to_xyxy,
)
from minimrcnn.datasets.pictures import read_picture
from minimrcnn.datasets.segmentations import rasterise, run_lengths
from minimrcnn.errors import UserError

WIDTH, HEIGHT = 40, 30
REAL = os.environ.get("MINIMRCNN_REAL_DATA")


def decode(rle: dict) -> np.ndarray:
    with warnings.catch_warnings():  # pycocotools 2.0.11 under numpy 2
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return rle_tools.decode(rle)


def square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotation(number: int, segmentation: object, bbox: list, **more: object) -> dict:
    base = {"id": number, "image_id": 7, "category_id": 3, "iscrowd": 0, "area": 1.0}
    return base | {"segmentation": segmentation, "bbox": bbox} | more


def content() -> dict:
    """Two pictures; the first with a polygon, two kinds of RLE and a crowd, the second with nothing."""
    block = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    block[5:15, 20:] = 1
    compressed = rle_tools.encode(block)
    compressed["counts"] = compressed["counts"].decode()
    flat = block.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "b.png", "width": HEIGHT, "height": WIDTH},
        ],
        "categories": [{"id": 90, "name": "cup"}, {"id": 3, "name": "key"}],
        "annotations": [
            annotation(1, square(2, 3, 10) + square(20, 20, 4), [2, 3, 22, 21]),
            annotation(2, compressed, [20, 5, 20, 10], category_id=90),
            annotation(3, {"size": [HEIGHT, WIDTH], "counts": runs}, [20, 5, 20, 10]),
            annotation(4, {"size": [HEIGHT, WIDTH], "counts": runs}, [20, 5, 20, 10], iscrowd=1),
        ],
    }


def write(folder: Path, data: dict | None = None) -> Path:
    """A data set in `folder` with the split `train`; returns the folder."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "train").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (HEIGHT, WIDTH, 3)), ("b.png", (WIDTH, HEIGHT, 3))):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / "train" / name)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(data or content()))
    return folder


def dataset(folder: Path, data: dict | None = None) -> CocoDataset:
    return CocoDataset(*find_split(write(folder, data), "train"))


# -- what comes out ------------------------------------------------------------------------------------


def test_an_item_is_a_native_uint8_picture_and_its_target(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    picture, target = data[0]
    stored = np.asarray(Image.open(tmp_path / "train" / "a.png"))
    assert picture.dtype == torch.uint8 and torch.equal(picture, torch.tensor(stored).permute(2, 0, 1))
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[2, 3, 24, 24], [20, 5, 40, 15], [20, 5, 40, 15]]
    assert target["labels"].tolist() == [1, 2, 1] and target["labels"].dtype == torch.int64
    assert target["image_id"].shape == () and int(target["image_id"]) == 7
    expected = [decode(data.coco.annToRLE(a)) for a in data.coco.imgToAnns[7][:3]]
    assert (target["masks"].to_dense(HEIGHT, WIDTH).numpy() == np.stack(expected)).all()


def test_crowds_leave_the_target_and_stay_for_the_evaluation(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert len(data[0][1]["boxes"]) == 3
    assert [a["id"] for a in data.coco.imgToAnns[7]] == [1, 2, 3, 4]


def test_a_picture_without_annotations_has_no_rows(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    picture, target = data[Request(1, hflip=True)]
    assert picture.shape == (3, WIDTH, HEIGHT)
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert target["masks"].boxes.shape == (0, 4) and target["masks"].pixels.shape == (0,)
    assert data.aspect_ratios == [WIDTH / HEIGHT, HEIGHT / WIDTH] and len(data) == 2


def test_an_object_with_an_empty_mask_stays(tmp_path: Path) -> None:
    edited = content()
    edited["annotations"][0]["segmentation"] = []
    edited["annotations"][1]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}
    for flips in ((False, False), (True, True)):
        target = dataset(tmp_path, edited)[Request(0, *flips)][1]
        dense = target["masks"].to_dense(HEIGHT, WIDTH)
        assert len(target["boxes"]) == 3 and dense.flatten(1).sum(1).tolist() == [0, 0, 200]


def test_missing_iscrowd_and_area_are_filled_in(tmp_path: Path) -> None:
    edited = content()
    del edited["annotations"][0]["iscrowd"], edited["annotations"][0]["area"]
    assert dataset(tmp_path, edited).coco.anns[1]["area"] == 22 * 21


def test_the_two_lines_of_coco_2017_are_left_out(tmp_path: Path) -> None:
    edited = content()
    edited["images"].append({"id": 200365, "file_name": "c.png", "width": 640, "height": 480})
    edited["annotations"].append(annotation(918, [], [296.65, 388.33, 1.03, 0.0], image_id=200365))
    data = dataset(tmp_path, edited)
    Image.new("RGB", (640, 480)).save(tmp_path / "train" / "c.png")
    assert len(data[2][1]["boxes"]) == 0 and 918 in data.coco.anns


def test_class_map_goes_there_and_back(tmp_path: Path) -> None:
    class_map = dataset(tmp_path).class_map
    assert class_map == ClassMap((3, 90), ("key", "cup"))
    assert [class_map.label(c) for c in (3, 90)] == [1, 2] and class_map.category(2) == 90
    assert ClassMap.from_plain(json.loads(json.dumps(class_map.to_plain()))) == class_map
    for wrong in (lambda: class_map.label(4), lambda: class_map.category(0), lambda: class_map.category(3)):
        with pytest.raises(UserError, match="is not one of"):
            wrong()
    with pytest.raises(UserError, match="ascending"):
        ClassMap((2, 1), ("a", "b"))


def test_a_given_class_map_decides_the_labels(tmp_path: Path) -> None:
    paths = find_split(write(tmp_path), "train")
    data = CocoDataset(*paths, class_map=ClassMap((1, 3, 90), ("man", "key", "cup")))
    assert data[0][1]["labels"].tolist() == [2, 3, 2]
    with pytest.raises(UserError, match="annotation 2 of image 7 is of category 90, not among 1, 3"):
        CocoDataset(*paths, class_map=ClassMap((1, 3), ("man", "key")))


# -- geometry ------------------------------------------------------------------------------------------

boxes_xywh = st.lists(
    st.tuples(*[st.floats(-20, 60, width=32)] * 2, *[st.floats(0.5, 80, width=32)] * 2), max_size=6
).map(lambda rows: np.array(rows, dtype=np.float64).reshape(-1, 4))


@settings(deadline=None)
@given(boxes_xywh)
def test_boxes_inside_convert_exactly_and_no_corner_leaves_the_picture(boxes: np.ndarray) -> None:
    corners = to_xyxy(boxes, np.array([WIDTH, HEIGHT]))
    assert corners.dtype == np.float32 and corners.shape == boxes.shape
    assert (corners >= 0).all() and (corners <= [WIDTH, HEIGHT] * 2).all()
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, :2] + boxes[:, 2:] <= [WIDTH, HEIGHT]).all(1)
    expected = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    assert (corners[inside] == expected[inside].astype(np.float32)).all()


@settings(deadline=None)
@given(boxes_xywh, st.booleans(), st.booleans())
def test_flipping_boxes_twice_is_identity(boxes: np.ndarray, hflip: bool, vflip: bool) -> None:
    corners = to_xyxy(boxes, np.array([WIDTH, HEIGHT]))
    once = flip_boxes(corners, WIDTH, HEIGHT, hflip, vflip)
    assert (once[:, 2:] >= once[:, :2]).all()
    twice = flip_boxes(once, WIDTH, HEIGHT, hflip, vflip)
    assert np.abs(twice - corners).max(initial=0) <= np.spacing(np.float32(WIDTH))  # W - (W - x) rounds


polygons = st.lists(
    st.lists(st.floats(-5, 45, width=32), min_size=6, max_size=24).filter(lambda p: len(p) % 2 == 0),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(polygons)
def test_polygons_are_pixel_identical_with_pycocotools(parts: list[list[float]]) -> None:
    expected = decode(rle_tools.merge(rle_tools.frPyObjects(parts, HEIGHT, WIDTH)))
    crop, (x1, y1, x2, y2) = rasterise(parts, WIDTH, HEIGHT)
    assert crop.shape == (y2 - y1, x2 - x1) and crop.sum() == expected.sum()
    assert (expected[y1:y2, x1:x2] == crop).all()
    if crop.size:  # the box is tight
        assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12))
def test_run_lengths_are_those_that_pycocotools_packed(runs: list[int]) -> None:
    runs = [*runs, max(0, WIDTH * HEIGHT - sum(runs))]
    height = sum(runs) // WIDTH
    runs[0] += height * WIDTH + WIDTH - sum(runs)
    rle = {"size": [height + 1, WIDTH], "counts": runs}
    packed = rle_tools.frPyObjects(rle, height + 1, WIDTH)
    assert run_lengths(packed, WIDTH, height + 1).tolist() == runs
    crop, (x1, y1, x2, y2) = rasterise(rle, WIDTH, height + 1)  # zero runs included
    expected = decode(packed)
    assert crop.sum() == expected.sum() and (expected[y1:y2, x1:x2] == crop).all()


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_a_flip_mirrors_picture_boxes_and_masks_alike(tmp_path: Path, flips: tuple[bool, bool]) -> None:
    data = dataset(tmp_path)
    axes = [axis for axis, flip in zip((-1, -2), flips, strict=True) if flip]
    (picture, target), (plain_picture, plain) = data[Request(0, *flips)], data[0]
    assert torch.equal(picture.flip(axes), plain_picture)
    dense = target["masks"].to_dense(HEIGHT, WIDTH)
    assert torch.equal(dense.flip(axes), plain["masks"].to_dense(HEIGHT, WIDTH))
    # These boxes are drawn tight around their masks, but pycocotools fills pixels by their centres.
    assert (target["boxes"] - target["masks"].boxes).abs().max() <= 1


# -- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "YCbCr"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    stored = Image.fromarray(colours).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr") else "x.png")
    stored.save(path)
    picture = read_picture(path, 6, 8)
    assert picture.shape == (3, 8, 6) and picture.dtype == torch.uint8 and picture.is_contiguous()
    assert torch.equal(picture, torch.tensor(np.array(stored.convert("RGB"))).permute(2, 0, 1))


def test_a_palette_with_transparent_entries_reads_without_a_warning(tmp_path: Path) -> None:
    Image.new("P", (6, 8), 1).save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert read_picture(tmp_path / "x.png", 6, 8).shape == (3, 8, 6)


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [4095, 40000, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        picture = read_picture(tmp_path / name, 3, 2)
        assert picture[0].tolist() == [[0, 0, 1], [15, 156, 255]] and torch.equal(picture[0], picture[2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_where_the_stated_size_allows(tmp_path: Path, orientation: int) -> None:
    path, exif = tmp_path / "x.png", Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(2).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    raw = torch.tensor(pixels).permute(2, 0, 1)
    turn = {
        1: lambda p: p,
        2: lambda p: p.flip(2),
        3: lambda p: p.flip(1, 2),
        4: lambda p: p.flip(1),
        5: lambda p: p.transpose(1, 2),
        6: lambda p: p.rot90(-1, (1, 2)),
        7: lambda p: p.rot90(2, (1, 2)).transpose(1, 2),
        8: lambda p: p.rot90(1, (1, 2)),
    }[orientation]
    turned = turn(raw)
    assert torch.equal(read_picture(path, turned.shape[2], turned.shape[1]), turned)
    assert torch.equal(read_picture(path, None, None), turned)
    if orientation >= 5:  # the annotation tool did not look at EXIF
        assert torch.equal(read_picture(path, 6, 8), raw)


# -- layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["val", "val2017", "images/val", "images/val2017", "images"])
def test_find_split_knows_the_layouts(tmp_path: Path, place: str) -> None:
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.touch()
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "images" / "train2017").mkdir(parents=True)
    assert find_split(tmp_path, "val") == (file, tmp_path / place)


def test_find_split_takes_the_exact_name_before_a_longer_one(tmp_path: Path) -> None:
    for name in ("train", "train_small"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{name}.json").touch()
        (tmp_path / name).mkdir()
    for name in ("train", "train_small"):
        assert find_split(tmp_path, name)[0].stem == f"instances_{name}"
        assert find_split(tmp_path, name)[1] == tmp_path / name
    with pytest.raises(UserError, match=r"several fit: instances_train\.json, instances_train_small\.json"):
        find_split(tmp_path, "tr")


def test_find_split_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set at .*nowhere.*data toybox"):
        find_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="annotations/ there is: nothing"):
        find_split(tmp_path, "train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").touch()
    with pytest.raises(UserError, match=r"instances_val\*\.json; .* instances_train\.json"):
        find_split(tmp_path, "val")
    with pytest.raises(UserError, match=r"should lie in .*train.* neither is there"):
        find_split(tmp_path, "train")


# -- bad input -----------------------------------------------------------------------------------------


def broken(edit: object) -> dict:
    data = copy.deepcopy(content())
    edit(data)
    return data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["annotations"][1].update(bbox=[4, 4, 0, 5]), "annotation 2 of image 7 .*not above 0"),
        (lambda d: d["annotations"][2].update(bbox=[9, 9, 4, -5]), "annotation 3 of image 7 .*not above 0"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, float("nan"), 5]), "annotation 1 .*not finite"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, float("inf"), 5]), "annotation 1 .*not finite"),
        (
            lambda d: d["annotations"][0].update(bbox=[41, 9, 5, 5]),
            "annotation 1 .*no part of which is inside",
        ),
        (lambda d: d["annotations"][3].update(category_id=4), "annotation 4 .*category 4, not among 3, 90"),
        (lambda d: d["annotations"][3].update(image_id=8), "annotation 4 of image 8 .*not listed"),
        (
            lambda d: d["annotations"][1].update(bbox=[4, 4, 5]),
            r"entry 1 of 'annotations' has an impossible 'bbox': \[4, 4, 5\]",
        ),
        (lambda d: d["annotations"][1].pop("bbox"), "entry 1 of 'annotations' has no 'bbox'"),
        (lambda d: d["annotations"][1].update(id=1), "the id 1 stands twice in 'annotations'"),
        (lambda d: d["images"][1].update(id=7), "the id 7 stands twice in 'images'"),
        (lambda d: d["images"][1].update(width=0), "entry 1 of 'images' has an impossible 'width': 0"),
        (lambda d: d["images"][1].update(id="9"), "entry 1 of 'images' has an impossible 'id': '9'"),
        (lambda d: d.pop("categories"), "no list 'categories'"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, edit: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        dataset(tmp_path, broken(edit))
    assert "instances_train.json" in str(caught.value)
    if "annotation " in message:
        assert f"python -m minimrcnn data check {tmp_path}`" in str(caught.value)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3]],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 1e12, 4, 5, 6]],
        "nonsense",
        {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": [3, 4]},
        {"size": [HEIGHT, WIDTH], "counts": "o1"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
    ],
)
def test_a_bad_segmentation_is_named(tmp_path: Path, segmentation: object) -> None:
    edited = content()
    edited["annotations"][1]["segmentation"] = segmentation
    data = dataset(tmp_path, edited)
    with pytest.raises(UserError, match="annotation 2 of image 7 has a segmentation that cannot be read"):
        data[0]


def test_malformed_json_is_given_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(UserError, match=r"instances_train\.json .*line 2, column 18"):
        read_coco(path)
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read"):
        read_coco(tmp_path / "nowhere.json")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"instances_train\.json cannot be read"):
        read_coco(path)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="no list 'images'"):
        read_coco(path)


def test_a_missing_folder_and_a_missing_picture_are_named(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    with pytest.raises(UserError, match=r"no picture folder .*elsewhere"):
        CocoDataset(data.annotations, tmp_path / "elsewhere")
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png is missing"):
        data[0]


def test_pictures_cut_short_or_not_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"x\.jpg cannot be read whole: .*truncated"):
        read_picture(path, 64, 64)
    path.write_text("not a picture")
    with pytest.raises(UserError, match=r"x\.jpg cannot be read whole: cannot identify"):
        read_picture(path, 64, 64)
    with pytest.raises(UserError, match="is a folder: give the picture files"):
        read_picture(tmp_path, None, None)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif .*floating-point"):
        read_picture(tmp_path / "x.tif", 4, 4)


def test_a_size_that_disagrees_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (6, 8)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png is 6 x 8 pixels.*says 8 x 6"):
        read_picture(tmp_path / "x.png", 8, 6)


# -- real data -----------------------------------------------------------------------------------------


@pytest.mark.skipif(REAL is None, reason="MINIMRCNN_REAL_DATA is not set")
@pytest.mark.parametrize("name", ["coco_sample", "nuclei"])
def test_real_masks_are_pixel_identical_with_pycocotools(name: str) -> None:
    data = CocoDataset(*find_split(Path(str(REAL)) / name, "val"))
    assert len(data) == {"coco_sample": 26, "nuclei": 47}[name]
    count = 0
    for index in range(len(data)):
        picture, target = data[index]
        annotations = [a for a in data.coco.imgToAnns[data.image_ids[index]] if not a["iscrowd"]]
        dense = target["masks"].to_dense(*picture.shape[1:])
        for mask, known in zip(dense, annotations, strict=True):
            assert (mask.numpy() == decode(data.coco.annToRLE(known))).all(), known["id"]
        count += len(dense)
    assert count == {"coco_sample": 328, "nuclei": 1421}[name]
