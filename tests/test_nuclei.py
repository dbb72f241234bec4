"""The nuclei set, from a tiny zip of the same form to COCO format."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from minimrcnn.datasets.check import check_dataset
from minimrcnn.datasets.nuclei import convert_nuclei, download_nuclei, split_of
from minimrcnn.errors import UserError

HEIGHT, WIDTH = 20, 30


def square(y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def add_folder(folder: Path, name: str, masks: list[np.ndarray]) -> None:
    """One source folder as in stage1_train: an RGBA picture, one 0/255 picture a mask."""
    (folder / name / "images").mkdir(parents=True)
    (folder / name / "masks").mkdir()
    pixels = np.random.default_rng(len(name)).integers(0, 255, (HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(folder / name / "images" / f"{name}.png")
    for index, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name / "masks" / f"m{index}.png")


@pytest.fixture
def source(tmp_path):
    """12 pictures with two nuclei each; split_of() sends some of them to val."""
    folder = tmp_path / "source"
    for index in range(12):
        add_folder(folder, f"id{index:02d}", [square(1, index, 4), square(10, 2 * index, 3)])
    return folder


def read(out: Path, split: str) -> dict:
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


def by_name(out: Path) -> dict[str, list[np.ndarray]]:
    """id -> decoded masks, of both splits."""
    masks = {}
    for split in ("train", "val"):
        data = read(out, split)
        names = {image["id"]: image["file_name"].removesuffix(".png") for image in data["images"]}
        masks |= {name: [] for name in names.values()}
        for entry in data["annotations"]:
            with warnings.catch_warnings():  # pycocotools 2.0.11 under numpy 2
                warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
                mask = coco_mask.decode(entry["segmentation"]).astype(bool)
            masks[names[entry["image_id"]]].append(mask)
    return masks


def test_the_result_is_a_clean_coco_set(source, tmp_path):
    out = tmp_path / "out"
    report = convert_nuclei(source, out)
    assert check_dataset(out) == []
    assert sum(report.images.values()) == 12
    assert min(report.images.values()) > 0
    assert sum(report.nuclei.values()) == 24
    for name, masks in by_name(out).items():
        index = int(name[2:])
        assert np.array_equal(masks, [square(1, index, 4), square(10, 2 * index, 3)])
        picture = Image.open(out / split_of(name) / f"{name}.png")
        original = Image.open(source / name / "images" / f"{name}.png")
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), np.asarray(original)[..., :3])
    entry = read(out, "train")["annotations"][0]
    assert entry["bbox"] == [0, 1, 4, 4]  # id00 is in train
    assert (entry["area"], entry["iscrowd"], entry["category_id"]) == (16, 0, 1)
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "train", "val"]


def test_ids_are_unique_over_both_splits(source, tmp_path):
    convert_nuclei(source, tmp_path)
    for key in ("images", "annotations"):
        ids = [entry["id"] for split in ("train", "val") for entry in read(tmp_path, split)[key]]
        assert len(ids) == len(set(ids)) > 0
        assert min(ids) == 1


def test_the_split_is_the_stated_rule():
    names = [f"{index:064x}" for index in range(4000)]
    expected = [
        "val" if int(hashlib.sha256(n.encode()).hexdigest()[:8], 16) % 100 < 15 else "train" for n in names
    ]
    assert [split_of(name) for name in names] == expected
    assert 0.13 < expected.count("val") / len(names) < 0.17


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    for out in ("a", "b"):
        convert_nuclei(source, tmp_path / out)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 14
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_shared_pixels_go_to_the_smallest_mask_and_are_reported(source, tmp_path, capsys):
    large, small = square(0, 0, 10), square(8, 8, 5)
    add_folder(source, "overlap", [small, large])
    report = convert_nuclei(source, tmp_path / "out")
    assert report.shared_pixels == {"overlap": 4}
    assert np.array_equal(by_name(tmp_path / "out")["overlap"], [small, large & ~small])
    assert "overlap (4)" in capsys.readouterr().err


def test_empty_and_doubled_masks_are_left_out_and_counted(source, tmp_path, capsys):
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    add_folder(source, "hollow", [nothing, square(3, 3, 3), square(3, 3, 3)])
    add_folder(source, "bare", [])
    report = convert_nuclei(source, tmp_path / "out")
    assert report.empty_masks == {"hollow": 2}
    masks = by_name(tmp_path / "out")
    assert np.array_equal(masks["hollow"], [square(3, 3, 3)])
    assert masks["bare"] == []  # a picture without nuclei is kept
    assert "left out 2 masks" in capsys.readouterr().err


def spoil_picture(folder: Path) -> None:
    (folder / "images" / "bad.png").write_bytes((folder / "images" / "bad.png").read_bytes()[:300])


def spoil_mask(folder: Path) -> None:
    (folder / "masks" / "m0.png").write_bytes(b"no picture")


def shrink_mask(folder: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT - 1), 255).save(folder / "masks" / "m1.png")


def remove_picture(folder: Path) -> None:
    (folder / "images" / "bad.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_picture, "images/bad.png cannot be read"),
        (spoil_mask, "masks/m0.png cannot be read"),
        (shrink_mask, "masks/m1.png is (30, 19), the picture is (30, 20)"),
        (remove_picture, "0 pictures in images/"),
    ],
)
def test_an_unusable_folder_is_left_out_whole_and_reported_by_id(source, tmp_path, capsys, spoil, why):
    add_folder(source, "bad", [square(1, 1, 3), square(9, 9, 3)])
    spoil(source / "bad")
    report = convert_nuclei(source, tmp_path / "out")
    assert list(report.skipped) == ["bad"]
    assert why in report.skipped["bad"]
    assert f"left out bad: {report.skipped['bad']}" in capsys.readouterr().err
    assert "bad" not in by_name(tmp_path / "out")
    assert sum(report.nuclei.values()) == 24
    assert not list((tmp_path / "out").glob("*/bad.png"))


def test_a_folder_without_any_picture_is_an_error(tmp_path):
    (tmp_path / "source" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no usable picture \(x: 0 pictures"):
        convert_nuclei(tmp_path / "source", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        convert_nuclei(tmp_path / "none", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_already_there_is_kept(source, tmp_path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="train is already there"):
        convert_nuclei(source, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "mine.png").read_bytes() == b"mine"


def test_ctrl_c_leaves_nothing_that_looks_whole(source, tmp_path, monkeypatch):
    save, calls = Image.Image.save, []

    def save_then_interrupt(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_nuclei(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    convert_nuclei(source, tmp_path / "out")
    assert check_dataset(tmp_path / "out") == []


# ---------------------------------------------------------------- download


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        self.server.asked.append(self.path)


@pytest.fixture
def server(source, tmp_path, monkeypatch):
    """Serves stage1_train.zip of the 12 pictures; yields the server, whose `url` and `asked` tests use."""
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "stage1_train.zip", "w") as archive:
        for path in sorted(source.rglob("*.png")):
            archive.write(path, path.relative_to(source))
        archive.writestr("__MACOSX/id00/._id00.png", b"")
    handler = functools.partial(Quiet, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.url, server.asked = f"http://127.0.0.1:{server.server_port}/stage1_train.zip", []
    server.zip = served / "stage1_train.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_end_to_end_and_a_second_time(server, tmp_path, capsys):
    out = download_nuclei(tmp_path / "data" / "nuclei", url=server.url)
    assert check_dataset(out) == []
    assert len(by_name(out)) == 12
    assert sorted(path.name for path in out.iterdir()) == ["annotations", "train", "val"]
    said = capsys.readouterr().err
    assert f"sha256 of stage1_train.zip: {hashlib.sha256(server.zip.read_bytes()).hexdigest()}" in said
    assert "warning: 12 folders in stage1_train.zip where 670 are expected" in said
    download_nuclei(out, url=server.url)
    assert len(server.asked) == 1
    assert "already complete" in capsys.readouterr().err


def test_a_damaged_zip_is_refused_by_its_own_crc(server, tmp_path):
    content = bytearray(server.zip.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 1
    server.zip.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*CRC.*Delete it and run again"):
        download_nuclei(tmp_path / "out", url=server.url)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage1_train.zip"]


def test_stopped_after_unpacking_it_converts_without_a_second_download(server, source, tmp_path):
    (tmp_path / "out").mkdir()
    os.rename(source, tmp_path / "out" / "stage1_train")
    download_nuclei(tmp_path / "out", url=server.url)
    assert server.asked == []
    assert check_dataset(tmp_path / "out") == []


def test_a_set_with_pictures_missing_is_not_called_complete(server, tmp_path):
    download_nuclei(tmp_path / "out", url=server.url)
    (tmp_path / "out" / "train" / "id00.png").unlink()
    with pytest.raises(UserError, match=r"not complete: 1 files.*id00\.png"):
        download_nuclei(tmp_path / "out", url=server.url)
