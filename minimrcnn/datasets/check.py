"""What is wrong with a data set in COCO format, by image id: `python -m minimrcnn data check DIR`.

Most of what makes a training fail after an hour, or succeed with a low AP that nobody can explain, can
be read off the annotation file: boxes written as corners, ids that do not match, masks of another picture.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from minimrcnn.datasets.check_geometry import check_boxes, check_masks, check_segmentations
from minimrcnn.datasets.coco import find_split
from minimrcnn.datasets.findings import Findings, Problem, at, first_ids
from minimrcnn.errors import UserError

ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


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
    found = Findings(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            message = f"there is no list {key!r}; a COCO file has images, annotations and categories"
            found.add("missing_key", "top level", message)
    if found:
        return found
    images = _check_images(data["images"], found)
    categories = _check_categories(data["categories"], found)
    annotations = _check_links(data["annotations"], images, categories, found)
    check_boxes(annotations, images, found)
    with_mask = check_segmentations(annotations, images, found)
    paths = _check_files(images, Path(image_folder), found)
    if not cheap:
        _check_twice(annotations, found)
        _check_pictures(paths, images, found)
        check_masks(with_mask, images, found)
    if any(problem.kind == "xyxy_boxes" for problem in found):  # why masks lie outside their boxes
        found[:] = [problem for problem in found if problem.kind != "mask_outside_box"]
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
    counts = f"{errors:,} error{'s' * (errors != 1)}, {notes:,} note{'s' * (notes != 1)}"
    print(counts if problems else "no problem found", file=file)
    return errors


# ---------------------------------------------------------------- ids and links


def _is_whole(value: object) -> bool:
    return type(value) is int  # not bool, which is an int to Python


def _add_duplicates(ids: list[int], what: str, found: Findings, images: Sequence[int] = ()) -> None:
    """images: where there are some, that of each id."""
    places: dict[int, list[int]] = {}
    for value, image in zip(ids, images, strict=False):
        places.setdefault(value, []).append(image)
    for value, count in Counter(ids).items():
        if count > 1:
            where = f"{what} {value}" + (f" ({first_ids('image', places[value])})" if images else "")
            found.add(f"duplicate_{what}_id", where, f"is listed {count} times; give each its own id")


def _check_images(entries: list, found: Findings) -> dict[int, dict]:
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
        found.add("no_images", "images", "the list is empty: list a picture, or remove the file")
    return {entry["id"]: entry for entry in usable}


def _check_categories(entries: list, found: Findings) -> set[int]:
    named = [entry for entry in entries if isinstance(entry, dict) and "name" in entry]
    ids = [entry["id"] for entry in named if _is_whole(entry.get("id"))]
    if len(ids) < len(entries) or not entries:
        bad = [n for n, entry in enumerate(entries) if entry not in named or not _is_whole(entry.get("id"))]
        where = f"categories[{bad[0]}]" if bad else "categories"
        message = "there must be at least one, each with an id (a whole number) and a name"
        found.add("malformed_category", where, message)
    _add_duplicates(ids, "category", found)
    for name, count in Counter(
        {str(entry.get("id")): str(entry["name"]) for entry in named}.values()
    ).items():
        if count > 1:
            message = f"{count} categories have this name; tables and pictures cannot tell them apart"
            found.add("duplicate_category_name", f"category {name!r}", message, "note")
    if 0 in ids:
        message = (
            "id 0 is usually a mistake: COCO's ids start at 1, and label 0 is the background. Here ids "
            "become labels 1..N, so it trains; other programs may take these objects for background."
        )
        found.add("category_zero", "category 0", message, "note")
    return set(ids)


def _check_links(entries: list, images: dict[int, dict], categories: set[int], found: Findings) -> list[dict]:
    """The annotations that belong to a usable image."""
    linked = []
    for index, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        if not all(_is_whole(entry.get(key)) for key in ("id", "image_id", "category_id")):
            message = "id, image_id and category_id must be there and be whole numbers"
            where = f"annotations[{index}] (id {entry.get('id')!r}, image {entry.get('image_id')!r})"
            found.add("malformed_annotation", where, message)
            continue
        if entry["category_id"] not in categories:
            message = f"category id {entry['category_id']} is not among the categories; add it or mend the id"
            found.add("unknown_category", at(entry), message)
        if entry["image_id"] in images:
            linked.append(entry)
        else:
            message = "its image is not among the images; add it or remove the annotation"
            found.add("unknown_image", at(entry), message)
    places = [entry["image_id"] for entry in linked]
    _add_duplicates([entry["id"] for entry in linked], "annotation", found, places)
    if zero := [entry for entry in linked if entry["id"] == 0]:
        message = "COCO's evaluation reads id 0 as 'no match' and counts its detection as wrong; start at 1"
        found.add("annotation_zero", at(zero[0]), message, "note")
    if bare := sorted(images.keys() - set(places)):
        message = f"{len(bare):,} of {len(images):,} images have no annotation; they train as background"
        found.add("no_annotations", first_ids("image", bare), message, "note")
    if linked and all(entry.get("iscrowd") == 1 for entry in linked):
        message = "all of them are crowds, so that no object is left to train on; an object has iscrowd 0"
        found.add("only_crowds", "annotations", message, "note")
    _check_values(linked, found)
    return linked


def _check_values(annotations: list[dict], found: Findings) -> None:
    """What evaluation and training read beside box and mask: iscrowd and area, which may be missing."""
    for entry in annotations:
        crowd, area = entry.get("iscrowd", 0), entry.get("area", 0)
        if not (_is_whole(crowd) and crowd in (0, 1)):
            message = f"iscrowd is {crowd!r}; write 0 for an object, 1 for a crowd, which is not trained on"
            found.add("malformed_iscrowd", at(entry), message)
        if not isinstance(area, int | float) or isinstance(area, bool) or not area >= 0:  # NaN fails too
            message = f"area is {area!r}; want the mask's pixels, by which evaluation tells small from large"
            found.add("malformed_area", at(entry), message)


def _check_twice(annotations: list[dict], found: Findings) -> None:
    """Objects that stand in the file twice, under two ids."""
    seen: dict[tuple, list[int]] = {}
    for entry in annotations:
        key = entry["image_id"], entry["category_id"], str(entry.get("bbox"))
        seen.setdefault(key, []).append(entry["id"])
    if twice := {key[0]: ids for key, ids in seen.items() if len(ids) > 1}:
        ids = next(iter(twice.values()))
        verb = "holds" if len(twice) == 1 else "hold"
        message = f"{verb} an object twice, as annotations {ids[0]} and {ids[1]}; remove one of them"
        found.add("same_object_twice", first_ids("image", twice), message, "note")


# ---------------------------------------------------------------- pictures


def _check_files(images: dict[int, dict], folder: Path, found: Findings) -> dict[int, Path]:
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


def _check_pictures(paths: dict[int, Path], images: dict[int, dict], found: Findings) -> None:
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
