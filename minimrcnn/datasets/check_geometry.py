"""Boxes, polygons, RLE and masks of a data set in COCO format: are they well formed, and do they agree?"""

from __future__ import annotations

import math
import re
import sys

import numpy as np
from tqdm import tqdm

from minimrcnn.datasets.coco import is_coco_line
from minimrcnn.datasets.findings import Findings, at, first_ids
from minimrcnn.datasets.segmentations import rasterise

ROUNDING = 1.0  # px by which a box may leave the picture: annotation tools round
MASK_SLACK = (2.0, 0.25)  # px, and share of the box's side, by which a mask and its box may disagree
# The characters of a compressed RLE are "0" + 6 bits; bit 5 says that the number goes on, so the last
# has it clear. pycocotools 2.0.11 reads past the end of a string that is empty or breaks this.
COMPRESSED_RLE = re.compile("[0-o]*[0-O]")


# ---------------------------------------------------------------- boxes


def _is_box(box: object) -> bool:
    """Four finite numbers: the comparison is False for NaN and infinity, and takes an int of any length."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(type(value) in (int, float) and -1e9 < value < 1e9 for value in box)


def check_boxes(annotations: list[dict], images: dict[int, dict], found: Findings) -> None:
    """Add to `found`: boxes that are no box, have no area, or leave their picture (as [x, y, width, height]).

    images: the image entries by id; every annotation's image is among them.
    """
    usable = []
    for entry in annotations:
        if _is_box(entry.get("bbox")):
            usable.append(entry)
        else:
            message = f"its bbox is {entry.get('bbox')!r}, not four finite numbers [x, y, width, height]"
            found.add("malformed_box", at(entry), message)
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
        found.add("flat_box", at(entry), message, "note" if is_coco_line(entry) else "error")

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
        found.add("box_outside", at(entry), message, "error" if share < 0.5 else "note")


def _add_xyxy(usable: list[dict], indices: np.ndarray, found: Findings) -> None:
    first = usable[indices[0]]
    where = first_ids("image", (usable[index]["image_id"] for index in indices))
    message = (
        f"{len(indices):,} of {len(usable):,} boxes leave their picture as [x, y, width, height] and fit as "
        f"[x1, y1, x2, y2], for example {first['bbox']} of {at(first)}. Write [x1, y1, x2 - x1, y2 - y1]."
    )
    found.add("xyxy_boxes", where, message)


# ---------------------------------------------------------------- masks


def check_segmentations(annotations: list[dict], images: dict[int, dict], found: Findings) -> list[dict]:
    """Return the annotations whose polygons or RLE are well formed; add the others to `found`."""
    usable, without = [], []
    for entry in annotations:
        segmentation = entry.get("segmentation")
        if segmentation in (None, [], {}):
            without.append(entry)
        elif problem := _segmentation_problem(segmentation, images[entry["image_id"]]):
            kind = "malformed_rle" if isinstance(segmentation, dict) else "malformed_polygon"
            found.add(kind, at(entry), problem)
        else:
            usable.append(entry)
    if without and len(without) == len(annotations):
        found.add("no_masks", "annotations", "none has a segmentation: only boxes can be trained", "note")
        return []
    for entry in without:
        found.add("empty_mask", at(entry), "its segmentation is empty; draw it or remove the annotation")
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


def check_masks(annotations: list[dict], images: dict[int, dict], found: Findings) -> None:
    """Add to `found`: masks (well formed) that are empty, or whose tight box is far from the stated box."""
    for entry in tqdm(annotations, desc="masks", unit="mask", file=sys.stderr):
        image, box = images[entry["image_id"]], entry.get("bbox")
        try:
            _, (x1, y1, x2, y2) = rasterise(entry["segmentation"], image["width"], image["height"])
        except (ValueError, TypeError, OverflowError) as error:
            kind = "malformed_rle" if isinstance(entry["segmentation"], dict) else "malformed_polygon"
            found.add(kind, at(entry), f"its mask cannot be decoded ({error}); write it again")
            continue
        tight = np.array([x1, y1, x2 - x1, y2 - y1])
        if not _is_box(box) or min(box[2:]) <= 0:
            continue  # reported with the boxes
        if tight[2] == 0:  # polygons thinner than a pixel can be nothing at all on the pixel grid
            message = f"its mask covers no pixel, its box is {box}; draw it again or remove the annotation"
            found.add("empty_mask", at(entry), message, "note" if min(box[2:]) < 2 else "error")
        elif severity := _disagreement(tight, np.array(box, np.float64)):
            message = (
                f"its mask lies in {tight.tolist()}, its box is {box} (both [x, y, width, height]); "
                "take the box from the mask, or see whether the mask belongs to another annotation"
            )
            found.add("mask_outside_box", at(entry), message, severity)


def _disagreement(tight: np.ndarray, box: np.ndarray) -> str:
    """'' when two boxes [x, y, w, h] agree within MASK_SLACK, "note" at IoU >= .5, else "error"."""
    slack = np.tile(np.maximum(MASK_SLACK[0], MASK_SLACK[1] * box[2:]), 2)  # (4,) px
    corners = np.stack([np.r_[b[:2], b[:2] + b[2:]] for b in (tight, box)])  # (2, 4) x1, y1, x2, y2
    if (np.abs(corners[0] - corners[1]) <= slack).all():
        return ""
    common = (corners[:, 2:].min(0) - corners[:, :2].max(0)).clip(0).prod()
    iou = common / (tight[2:].prod() + box[2:].prod() - common)
    return "note" if iou >= 0.5 else "error"
