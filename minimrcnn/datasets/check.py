"""What is wrong with a data set in COCO format, by image id: `python -m minimrcnn data check DIR`.

Most of what makes a training fail after an hour, or succeed with a low AP that nobody can explain, can
be read off the annotation file: boxes written as corners, ids that do not match, masks of another picture.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from minimrcnn.datasets.coco import find_split, is_coco_line, rasterise
from minimrcnn.errors import UserError

ROUNDING = 1.0  # px by which a box may leave the picture: annotation tools round
MASK_SLACK = (2.0, 0.25)  # px, and share of the box's side, by which a mask and its box may disagree
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# The characters of a compressed RLE are "0" + 6 bits; bit 5 says that the number goes on, so the last
# has it clear. pycocotools 2.0.11 reads past the end of a string that is empty or breaks this.
COMPRESSED_RLE = re.compile("[0-o]*[0-O]")


@dataclass(frozen=True)
class Problem:
    """One finding. kind: a short name to group by; where: file and image or annotation id."""

    kind: str
    where: str
    message: str  # what is wrong, and what to do
    severity: str = "error"  # "error": training would fail or go wrong; "note": worth knowing


class _Findings(list[Problem]):
    """The problems of one annotation file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def add(self, kind: str, where: str, message: str, severity: str = "error") -> None:
        self.append(Problem(kind, f"{self.file}: {where}", message, severity))


def check_dataset(folder: Path, *, split: str | None = None, cheap: bool = False) -> list[Problem]:
    """Check one split of the data set in `folder`, or with `split=None` every `annotations/instances_*.json`.

    cheap: only what needs neither a picture nor a mask decoded (a second or so for 100,000 annotations).
    Raises UserError when there is no data set in `folder`.
    """
    folder = Path(folder)
    splits = [split] if split else []
    if not split:
        files = sorted((folder / "annotations").glob("instances_*.json"))
        splits = [path.stem.removeprefix("instances_") for path in files] or ["train"]
    problems = []
    for name in splits:
        problems += check_split(*find_split(folder, name), cheap=cheap)
    return problems


def check_split(annotation_file: Path, image_folder: Path, *, cheap: bool = False) -> list[Problem]:
    """Check one annotation file and the folder that its `file_name`s are relative to."""
    annotation_file = Path(annotation_file)
    try:
        data = json.loads(annotation_file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {annotation_file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        message = f"is not valid JSON ({error}). Was it cut short? Write or download it again."
        return [Problem("malformed_json", str(annotation_file), message)]
    return check_annotations(data, image_folder, file=annotation_file.name, cheap=cheap)


def check_annotations(data: dict, image_folder: Path, *, file: str, cheap: bool = False) -> list[Problem]:
    """Check a parsed annotation file (`COCO(...).dataset` is one); `file` is its name in the messages."""
    found = _Findings(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            message = f"there is no list {key!r}; a COCO file has images, annotations and categories"
            found.add("missing_key", "top level", message)
    if found:
        return found
    images = _check_images(data["images"], found)
    categories = _check_categories(data["categories"], found)
    annotations = _check_links(data["annotations"], images, categories, found)
    _check_boxes(annotations, images, found)
    with_mask = _check_segmentations(annotations, images, found)
    paths = _check_files(images, Path(image_folder), found)
    if not cheap:
        _check_pictures(paths, images, found)
        _check_masks(with_mask, images, found)
    return found


def print_report(problems: list[Problem], *, limit: int = 10, file: TextIO | None = None) -> int:
    """Print the problems by kind, errors first, at most `limit` of a kind; return the number of errors."""
    kinds = Counter((problem.severity, problem.kind) for problem in problems)
    for (severity, kind), count in sorted(kinds.items()):  # "error" sorts before "note"
        print(f"{severity}: {kind} ({count:,})", file=file)
        members = [problem for problem in problems if (problem.severity, problem.kind) == (severity, kind)]
        for problem in members[:limit]:
            print(f"  {problem.where}: {problem.message}", file=file)
        if count > limit:
            print(f"  ... and {count - limit:,} more", file=file)
    errors = sum(problem.severity == "error" for problem in problems)
    notes = len(problems) - errors
    print(f"{errors:,} errors, {notes:,} notes" if problems else "no problem found", file=file)
    return errors


# ---------------------------------------------------------------- ids and links


def _is_whole(value: object) -> bool:
    return type(value) is int  # not bool, which is an int to Python


def _at(annotation: dict) -> str:
    return f"annotation {annotation['id']} (image {annotation['image_id']})"


def _add_duplicates(ids: list[int], what: str, found: _Findings) -> None:
    for value, count in Counter(ids).items():
        if count > 1:
            found.add(
                f"duplicate_{what}_id", f"{what} {value}", f"is listed {count} times; give each its own id"
            )


def _check_images(entries: list, found: _Findings) -> dict[int, dict]:
    """The usable image entries by id."""
    usable = []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        name, sides = entry.get("file_name"), [entry.get("width"), entry.get("height")]
        problem = ""
        if not _is_whole(entry.get("id")):
            problem = "its id must be a whole number"
        elif not isinstance(name, str) or not name:
            problem = "it has no file_name, the path of its picture"
        elif not all(_is_whole(side) and side > 0 for side in sides):
            problem = f"width and height must be whole numbers of pixels above 0, not {sides}"
        if problem:
            found.add("malformed_image", f"images[{index}] (id {entry.get('id')!r})", problem)
        else:
            usable.append(entry)
    _add_duplicates([entry["id"] for entry in usable], "image", found)
    if not entries:
        found.add("no_images", "images", "the list is empty; there is nothing to train on")
    return {entry["id"]: entry for entry in usable}


def _check_categories(entries: list, found: _Findings) -> set[int]:
    named = [entry for entry in entries if isinstance(entry, dict) and "name" in entry]
    ids = [entry["id"] for entry in named if _is_whole(entry.get("id"))]
    if len(ids) < len(entries) or not entries:
        message = "there must be at least one, each with an id (a whole number) and a name"
        found.add("malformed_category", "categories", message)
    _add_duplicates(ids, "category", found)
    if 0 in ids:
        message = (
            "id 0 is usually a mistake: COCO's ids start at 1, and label 0 is the background. Here ids "
            "become labels 1..N, so it trains; other programs may take these objects for background."
        )
        found.add("category_zero", "category 0", message, "note")
    return set(ids)


def _check_links(
    entries: list, images: dict[int, dict], categories: set[int], found: _Findings
) -> list[dict]:
    """The annotations that belong to a usable image."""
    linked = []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        if not all(_is_whole(entry.get(key)) for key in ("id", "image_id", "category_id")):
            message = "id, image_id and category_id must be there and be whole numbers"
            found.add("malformed_annotation", f"annotations[{index}] (id {entry.get('id')!r})", message)
            continue
        if entry["category_id"] not in categories:
            message = f"category id {entry['category_id']} is not among the categories; add it or mend the id"
            found.add("unknown_category", _at(entry), message)
        if entry["image_id"] in images:
            linked.append(entry)
        else:
            message = "its image is not among the images; add it or remove the annotation"
            found.add("unknown_image", _at(entry), message)
    ids = [entry["id"] for entry in linked]
    _add_duplicates(ids, "annotation", found)
    if 0 in ids:
        message = "COCO's evaluation reads id 0 as 'no match' and counts its detection as wrong; start at 1"
        found.add("annotation_zero", "annotation 0", message, "note")
    if bare := len(images.keys() - {entry["image_id"] for entry in linked}):
        message = "have no annotation; they train as background"
        found.add("no_annotations", f"{bare:,} of {len(images):,} images", message, "note")
    return linked


# ---------------------------------------------------------------- boxes


def _is_box(box: object) -> bool:
    """Four finite numbers: the comparison is False for NaN and infinity, and takes an int of any length."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(type(value) in (int, float) and -1e9 < value < 1e9 for value in box)


def _check_boxes(annotations: list[dict], images: dict[int, dict], found: _Findings) -> None:
    usable = []
    for entry in annotations:
        if _is_box(entry.get("bbox")):
            usable.append(entry)
        else:
            message = f"its bbox is {entry.get('bbox')!r}, not four finite numbers [x, y, width, height]"
            found.add("malformed_box", _at(entry), message)
    if not usable:
        return
    sizes = [(images[entry["image_id"]]["width"], images[entry["image_id"]]["height"]) for entry in usable]
    size = np.array(sizes, np.float64)  # (N, 2) width, height
    boxes = np.array([entry["bbox"] for entry in usable], np.float64)  # (N, 4) x, y, w, h
    start, extent = boxes[:, :2], boxes[:, 2:]  # (N, 2)

    flat = (extent <= 0).any(1)  # (N,)
    for index in np.flatnonzero(flat):
        entry = usable[index]
        message = f"its box {entry['bbox']} has no area; mend the box or remove the annotation"
        found.add("flat_box", _at(entry), message, "note" if is_coco_line(entry) else "error")

    outside = ((start < -ROUNDING) | (start + extent > size + ROUNDING)).any(1) & ~flat
    # Would the same four numbers fit as x1, y1, x2, y2?
    corners = ((extent > start) & (extent <= size + ROUNDING) & (start >= -ROUNDING)).all(1)
    if corners.mean() >= 0.95 and (outside & corners).mean() >= 0.1:
        _add_xyxy(usable, np.flatnonzero(outside & corners), found)
        return
    inside = (np.minimum(start + extent, size) - np.maximum(start, 0)).clip(0).prod(1)  # (N,) px^2
    for index in np.flatnonzero(outside):
        entry, share = usable[index], inside[index] / extent[index].prod()
        hint = " Read as [x1, y1, x2, y2] it would fit." if corners[index] else ""
        message = (
            f"its box {entry['bbox']} [x, y, width, height] leaves the picture of {size[index, 0]:.0f} x "
            f"{size[index, 1]:.0f}: {share:.0%} of it is inside.{hint} Cut it to the picture or mend it."
        )
        found.add("box_outside", _at(entry), message, "error" if share < 0.5 else "note")


def _add_xyxy(usable: list[dict], indices: np.ndarray, found: _Findings) -> None:
    first = usable[indices[0]]
    ids = list(dict.fromkeys(usable[index]["image_id"] for index in indices))
    message = (
        f"{len(indices):,} of {len(usable):,} boxes leave their picture as [x, y, width, height] and fit as "
        f"[x1, y1, x2, y2], for example {first['bbox']} of {_at(first)}. Write [x1, y1, x2 - x1, y2 - y1]."
    )
    found.add("xyxy_boxes", f"images {', '.join(map(str, ids[:5]))}{', ...' if ids[5:] else ''}", message)


# ---------------------------------------------------------------- masks


def _check_segmentations(annotations: list[dict], images: dict[int, dict], found: _Findings) -> list[dict]:
    """The annotations whose polygons or RLE are well formed."""
    usable, without = [], []
    for entry in annotations:
        segmentation = entry.get("segmentation")
        if segmentation in (None, [], {}):
            without.append(entry)
        elif problem := _segmentation_problem(segmentation, images[entry["image_id"]]):
            kind = "malformed_rle" if isinstance(segmentation, dict) else "malformed_polygon"
            found.add(kind, _at(entry), problem)
        else:
            usable.append(entry)
    if without and len(without) == len(annotations):
        found.add("no_masks", "annotations", "none has a segmentation: only boxes can be trained", "note")
        return []
    for entry in without:
        found.add("empty_mask", _at(entry), "its segmentation is empty; draw it or remove the annotation")
    return usable


def _segmentation_problem(segmentation: object, image: dict) -> str:
    """What is wrong with the form of a segmentation, or ''."""
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, image)
    if not isinstance(segmentation, list):
        return f"its segmentation is a {type(segmentation).__name__}; it must be a list of polygons or an RLE"
    for index, polygon in enumerate(segmentation):
        if not isinstance(polygon, list):
            return "its segmentation must be a list of lists: [[x1, y1, x2, y2, ...]], one list a polygon"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"polygon {index} has {len(polygon)} numbers; it needs x, y of at least 3 corners"
        try:
            finite = math.isfinite(sum(polygon))  # one NaN or infinity spoils the sum
        except (TypeError, OverflowError):
            finite = False
        if not finite:
            return f"polygon {index} has something other than finite numbers in it"
    return ""


def _rle_problem(rle: dict, image: dict) -> str:
    size, expected = rle.get("size"), [image["height"], image["width"]]
    counts = rle.get("counts")
    if size != expected:
        return f"its RLE has size {size}, the picture is {expected} (height, width)"
    if isinstance(counts, str):
        return "" if COMPRESSED_RLE.fullmatch(counts) else "its RLE counts are not a compressed RLE string"
    if not isinstance(counts, list) or set(map(type, counts)) != {int} or min(counts) < 0:
        return "its RLE counts must be a compressed string or a list of whole numbers"
    if sum(counts) != size[0] * size[1]:
        return f"its RLE counts add up to {sum(counts)}, the picture has {size[0] * size[1]} pixels"
    return ""


def _check_masks(annotations: list[dict], images: dict[int, dict], found: _Findings) -> None:
    """Compare each mask's tight box with the stated box."""
    for entry in tqdm(annotations, desc="masks", unit="mask", file=sys.stderr):
        image, box = images[entry["image_id"]], entry.get("bbox")
        try:
            _, (x1, y1, x2, y2) = rasterise(entry["segmentation"], image["width"], image["height"])
        except (ValueError, TypeError, OverflowError) as error:
            kind = "malformed_rle" if isinstance(entry["segmentation"], dict) else "malformed_polygon"
            found.add(kind, _at(entry), f"its mask cannot be decoded ({error}); write it again")
            continue
        tight = np.array([x1, y1, x2 - x1, y2 - y1])
        if not _is_box(box) or min(box[2:]) <= 0:
            continue  # reported with the boxes
        if tight[2] == 0:  # polygons thinner than a pixel can be nothing at all on the pixel grid
            message = f"its mask covers no pixel, its box is {box}; draw it again or remove the annotation"
            found.add("empty_mask", _at(entry), message, "note" if min(box[2:]) < 2 else "error")
        elif severity := _disagreement(tight, np.array(box, np.float64)):
            message = (
                f"its mask lies in {tight.tolist()}, its box is {box} (both [x, y, width, height]); "
                "take the box from the mask, or see whether the mask belongs to another annotation"
            )
            found.add("mask_outside_box", _at(entry), message, severity)


def _disagreement(tight: np.ndarray, box: np.ndarray) -> str:
    """'' when two boxes [x, y, w, h] agree within MASK_SLACK, "note" at IoU >= .5, else "error"."""
    slack = np.tile(np.maximum(MASK_SLACK[0], MASK_SLACK[1] * box[2:]), 2)  # (4,) px
    corners = np.stack([np.r_[b[:2], b[:2] + b[2:]] for b in (tight, box)])  # (2, 4) x1, y1, x2, y2
    if (np.abs(corners[0] - corners[1]) <= slack).all():
        return ""
    common = (corners[:, 2:].min(0) - corners[:, :2].max(0)).clip(0).prod()
    iou = common / (tight[2:].prod() + box[2:].prod() - common)
    return "note" if iou >= 0.5 else "error"


# ---------------------------------------------------------------- pictures


def _check_files(images: dict[int, dict], folder: Path, found: _Findings) -> dict[int, Path]:
    """The path of each picture that is there, by image id."""
    listings: dict[str, set[str]] = {}  # one listing a folder: 100,000 single look-ups take seconds
    paths = {}
    for image_id, image in images.items():
        name = image["file_name"]
        if PureWindowsPath(name).anchor or ".." in name.replace("\\", "/").split("/"):
            message = f"file_name {name!r} leaves the picture folder; write it relative to {folder}"
            found.add("unsafe_path", f"image {image_id}", message)
            continue
        parent, _, base = name.rpartition("/")
        if parent not in listings:
            listings[parent] = set(os.listdir(folder / parent)) if (folder / parent).is_dir() else set()
        if base in listings[parent]:
            paths[image_id] = folder / name
        else:
            message = f"{folder / name} is not there; copy it, mend file_name, or remove the image"
            found.add("missing_picture", f"image {image_id}", message)
    return paths


def _check_pictures(paths: dict[int, Path], images: dict[int, dict], found: _Findings) -> None:
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without holding the interpreter
    try:
        results = pool.map(lambda image_id: _picture_problem(paths[image_id], images[image_id]), paths)
        bar = tqdm(results, total=len(paths), desc="pictures", unit="picture", file=sys.stderr)
        for image_id, problem in zip(paths, bar, strict=True):
            if problem:
                found.add(problem[0], f"image {image_id}", problem[1])
    finally:
        pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for all the pictures that are left


def _picture_problem(path: Path, image: dict) -> tuple[str, str] | None:
    """(kind, message) of what is wrong with one picture."""
    try:
        with Image.open(path) as picture:
            picture.load()
            size, rotated = picture.size, picture.getexif().get(0x0112) in ROTATED
    except Exception as error:  # Pillow's decoders raise a dozen types for a broken file
        return "unreadable_picture", f"{path} cannot be decoded ({error}); copy or download it again"
    stated = (image["width"], image["height"])
    if stated == size or (rotated and stated == size[::-1]):
        return None
    hint = " They are swapped." if stated == size[::-1] else ""
    message = f"{path} is {size[0]} x {size[1]}, the annotation file says {stated[0]} x {stated[1]}.{hint}"
    return "size_mismatch", f"{message} Boxes and masks belong to the stated size: find the right picture."
