"""The 2018 nuclei set (BBBC038 v1, Data Science Bowl stage 1, CC0), converted to COCO format.

The source is one folder a picture: `<id>/images/<id>.png` (RGBA) and `<id>/masks/*.png`, one mask a
nucleus. The result is `out/annotations/instances_{train,val}.json` and `out/{train,val}/<id>.png`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from minimrcnn.datasets.download import fetch, file_hash, say
from minimrcnn.datasets.unpack import unpack
from minimrcnn.errors import UserError

NUCLEI_URL = "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip"
NUCLEI_FOLDERS = 670
VAL_PERCENT = 15
CATEGORY = {"id": 1, "name": "nucleus", "supercategory": "cell"}


@dataclass
class Conversion:
    """What `convert_nuclei` made and what it found on the way."""

    images: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    nuclei: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0})
    skipped: dict[str, str] = field(default_factory=dict)  # id -> why this folder was left out
    empty_masks: dict[str, int] = field(default_factory=dict)  # id -> masks without a pixel of their own
    shared_pixels: dict[str, int] = field(default_factory=dict)  # id -> pixels claimed by several masks


class _Unusable(Exception):
    """A source folder that cannot become a picture with all its nuclei."""


def download_nuclei(out: Path, *, url: str = NUCLEI_URL) -> Path:
    """Download BBBC038 stage 1 and convert it into `out`, which is returned.

    No checksum of the zip is published with it, so its own CRCs and the 670 folders are what is
    verified; its sha256 is printed, to compare with another machine's. The zip and the unpacked masks
    are removed once they are converted. A second run says that all is there.

    Raises UserError: as `fetch`, `unpack` and `convert_nuclei`; `out` has annotations but lacks pictures.
    """
    out = Path(out)
    if _is_complete(out):
        say(f"{out} is already complete")
        return out
    source, zip_path = out / "stage1_train", out / "stage1_train.zip"
    if not source.exists():  # unpack() renames it into place when it is whole
        fetch(url, zip_path, size=None, md5=None)
        say(f"sha256 of {zip_path.name}: {file_hash(zip_path, 'sha256')}")
        unpack(zip_path, source)
    found = len(_picture_folders(source))
    if found != NUCLEI_FOLDERS:
        say(f"warning: {found} folders in {zip_path.name} where {NUCLEI_FOLDERS} are expected; going on")
    convert_nuclei(source, out)
    shutil.rmtree(source)
    zip_path.unlink(missing_ok=True)
    return out


def convert_nuclei(folder: Path, out: Path) -> Conversion:
    """Convert `folder` (one sub-folder a picture) to COCO format in `out`; prints and returns a report.

    Split: a picture is in val when the first 8 hex digits of sha256(id), modulo 100, are below 15, so
    adding or losing pictures moves no other picture from one split to the other.

    A folder without a picture, with an unreadable picture or mask, or with a mask of another size is
    left out as a whole and reported by id: a picture that lacks one nucleus would teach that this
    nucleus is background. A pixel that several masks claim goes to the smallest of them (the set
    intends no overlap; the smaller nucleus would lose more), and masks without a pixel of their own are
    left out and counted. Pictures without any nucleus are kept.

    Pictures are written as RGB (alpha is dropped: it is opaque everywhere). `out/annotations` appears
    last, so a conversion that was interrupted cannot be taken for a whole one.

    Raises UserError: no usable picture in `folder`; `out` already has a train, val or annotations.
    """
    folder, out = Path(folder), Path(out)
    for name in ("train", "val", "annotations"):
        if (out / name).exists():
            raise UserError(f"{out / name} is already there. Delete it or move it away, and run again.")
    temporary = out / ".converting"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        report = _convert_into(folder, temporary)
        for name in ("train", "val", "annotations"):
            os.replace(temporary / name, out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _say_report(report, out)
    return report


def split_of(image_id: str) -> str:
    """The split ("train" or "val") of a picture, decided by its id alone."""
    return (
        "val" if int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16) % 100 < VAL_PERCENT else "train"
    )


def _picture_folders(folder: Path) -> list[Path]:
    """The sub-folders in the order of their names; `__MACOSX` and hidden ones hold no pictures."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; it should hold one folder a picture (<id>/images, <id>/masks)"
        )
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _convert_into(folder: Path, out: Path) -> Conversion:
    """Write annotations/, train/ and val/ below `out`."""
    report = Conversion()
    data = {split: _empty_set() for split in ("train", "val")}
    for name in ("train", "val", "annotations"):
        (out / name).mkdir(parents=True)
    sources = _picture_folders(folder)
    for number, source in enumerate(tqdm(sources, desc="converting", unit="picture", file=sys.stderr), 1):
        split = split_of(source.name)
        try:
            picture = _read_picture(source)
            masks = _read_masks(source, picture.size)
        except _Unusable as why:
            report.skipped[source.name] = str(why)
            continue
        file_name = f"{source.name}.png"
        picture.save(out / split / file_name)
        width, height = picture.size
        images, annotations = data[split]["images"], data[split]["annotations"]
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for mask in _without_overlap(masks, source.name, report):
            # Ids are unique over both splits, so the two files can be joined.
            annotations.append(_annotation(mask, sum(report.nuclei.values()) + 1, number))
            report.nuclei[split] += 1
        report.images[split] += 1
    if not any(report.images.values()):
        first = next(iter(report.skipped.items()), ("no sub-folder", "nothing"))
        raise UserError(
            f"{folder} holds no usable picture ({first[0]}: {first[1]}). It should hold one folder a picture "
            "with images/*.png and masks/*.png."
        )
    for split, content in data.items():
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return report


def _empty_set() -> dict:
    info = {
        "description": "BBBC038 v1 (Data Science Bowl 2018, stage 1), converted to COCO format",
        "license": "CC0",
    }
    return {"info": info, "images": [], "annotations": [], "categories": [CATEGORY]}


def _open(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert(mode)
    except Exception as error:  # Pillow's decoders raise a dozen types for a broken file
        raise _Unusable(f"{path.parent.name}/{path.name} cannot be read: {error}") from error


def _read_picture(source: Path) -> Image.Image:
    paths = sorted((source / "images").glob("*.png"))
    if len(paths) != 1:
        raise _Unusable(f"{len(paths)} pictures in images/ where one belongs")
    return _open(paths[0], "RGB")


def _read_masks(source: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """The masks in the order of their file names, each (H, W) bool; size is the picture's (width, height)."""
    masks = []
    for path in sorted((source / "masks").glob("*.png")):
        mask = _open(path, "L")
        if mask.size != size:
            raise _Unusable(f"masks/{path.name} is {mask.size}, the picture is {size} (width, height)")
        masks.append(np.asarray(mask) > 127)
    return masks


def _without_overlap(masks: list[np.ndarray], image_id: str, report: Conversion) -> list[np.ndarray]:
    """Give each pixel to the smallest mask that claims it; drop masks that are left without any."""
    if not masks:
        return []
    claims = np.zeros(masks[0].shape, np.int32)  # (H, W) masks at this pixel
    owner = np.full(masks[0].shape, -1, np.int32)  # (H, W) index of the mask, -1 is background
    by_size = sorted(range(len(masks)), key=lambda index: (-masks[index].sum(), -index))
    for index in by_size:  # largest first, so that the smaller ones are painted over it
        claims += masks[index]
        owner[masks[index]] = index
    if shared := int((claims > 1).sum()):
        report.shared_pixels[image_id] = shared
        masks = [owner == index for index in range(len(masks))]
    kept = [mask for mask in masks if mask.any()]
    if len(kept) < len(masks):
        report.empty_masks[image_id] = len(masks) - len(kept)
    return kept


def _annotation(mask: np.ndarray, number: int, image_id: int) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": CATEGORY["id"],
        "iscrowd": 0,
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def _say_report(report: Conversion, out: Path) -> None:
    for split in ("train", "val"):
        say(f"{out / split}: {report.images[split]:,} pictures, {report.nuclei[split]:,} nuclei")
    for image_id, why in report.skipped.items():
        say(f"left out {image_id}: {why}")
    if report.empty_masks:
        count, names = sum(report.empty_masks.values()), ", ".join(list(report.empty_masks)[:5])
        say(
            f"left out {count} masks without a pixel of their own, in {len(report.empty_masks)} pictures: "
            f"{names}"
        )
    if report.shared_pixels:
        worst = sorted(report.shared_pixels.items(), key=lambda item: -item[1])[:5]
        say(
            f"{sum(report.shared_pixels.values()):,} pixels in {len(report.shared_pixels)} pictures were in "
            "several masks and went to the smallest; most: "
            + ", ".join(f"{name} ({count})" for name, count in worst)
        )


def _is_complete(out: Path) -> bool:
    """True when both annotation files and all their pictures are there; False without annotations."""
    if not (out / "annotations").exists():
        return False
    missing = []
    for split in ("train", "val"):
        path = out / "annotations" / f"instances_{split}.json"
        try:
            names = {image["file_name"] for image in json.loads(path.read_text())["images"]}
            missing += sorted(names - {entry.name for entry in os.scandir(out / split)})
        except (OSError, ValueError, KeyError, TypeError):
            missing.append(path.name)
    if missing:
        raise UserError(
            f"{out} is not complete: {len(missing)} files are missing or unreadable (first: {missing[0]}). "
            f"Delete train, val and annotations in it, and run again."
        )
    return True
