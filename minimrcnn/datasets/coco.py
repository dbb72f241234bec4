"""COCO-format data sets: from an annotation file and a picture folder to tensors.

A picture keeps its native size and stays uint8; a mask is cut to its own tight box. Resizing and
normalising happen later, on the device, where they are cheap.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from minimrcnn.datasets.pictures import read_picture
from minimrcnn.datasets.segmentations import rasterise
from minimrcnn.errors import UserError
from minimrcnn.structures import MaskCrops

# The two annotations of COCO train2017 whose box is a line, with their pictures: left out, as everyone does.
COCO_LINES = {918: 200365, 2206849: 550395}
_REQUIRED = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


class Request(NamedTuple):
    """Which picture, and how to mirror it: the sampler decides, the data set obeys."""

    index: int
    hflip: bool = False
    vflip: bool = False


@dataclass(frozen=True)
class ClassMap:
    """Raw category ids, which may have gaps, to labels 1..N and back. Label 0 is the background.

    Attributes:
        category_ids: ascending; the category of label k stands at k - 1.
        names: of the same categories, in the same order.
    """

    category_ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.category_ids, self.category_ids[1:], strict=False)):
            raise UserError(f"Category ids must be different and ascending, not {list(self.category_ids)}.")

    def label(self, category_id: int) -> int:
        """The label 1..N of a raw category id; UserError if the id is not listed."""
        if category_id not in self.category_ids:
            raise UserError(f"Category {category_id} is not one of {self.category_ids}.")
        return self.category_ids.index(category_id) + 1

    def category(self, label: int) -> int:
        """The raw category id of a label 1..N; UserError for any other label."""
        if not 1 <= label <= len(self.category_ids):
            raise UserError(f"Label {label} is not one of 1..{len(self.category_ids)}.")
        return self.category_ids[label - 1]

    def to_plain(self) -> dict:
        """Lists, numbers and strings: what a checkpoint may hold."""
        return {"category_ids": list(self.category_ids), "names": list(self.names)}

    @staticmethod
    def from_plain(plain: dict) -> ClassMap:
        """The inverse of `to_plain`."""
        return ClassMap(tuple(int(i) for i in plain["category_ids"]), tuple(str(n) for n in plain["names"]))

    @staticmethod
    def from_coco(coco: COCO) -> ClassMap:
        """Labels by ascending category id."""
        categories = sorted(coco.dataset["categories"], key=lambda category: category["id"])
        return ClassMap(tuple(c["id"] for c in categories), tuple(str(c["name"]) for c in categories))


def find_split(folder: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the picture folder of one split.

    Looks for `annotations/instances_<split>*.json`, and for the pictures in `<split>*/`,
    `images/<split>*/`, or `images/` itself. An exact name goes before a longer one.

    Raises:
        UserError: nothing fits, or more than one thing does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"There is no data set at {folder}. Give the folder in which annotations/ lies, or draw one "
            f"with `python -m minimrcnn data toybox --out {folder}`."
        )
    pattern = f"{glob.escape(split)}*"
    files = sorted((folder / "annotations").glob(f"instances_{pattern}.json"))
    files = [file for file in files if file.stem == f"instances_{split}"] or files
    if len(files) != 1:
        present = [file.name for file in files or sorted((folder / "annotations").glob("*"))]
        raise UserError(
            f"The split '{split}' of {folder} needs one file annotations/instances_{split}*.json; "
            f"{'several fit' if files else 'in annotations/ there is'}: {', '.join(present) or 'nothing'}."
        )
    name = files[0].stem.removeprefix("instances_")  # val2017
    roots = (folder, folder / "images")
    near = [place for root in roots for place in sorted(root.glob(pattern)) if place.is_dir()]
    exact = [place for place in near if place.name == name]
    places = exact[:1] or near or [place for place in roots[1:] if place.is_dir()]
    if len(places) != 1:
        raise UserError(
            f"The pictures of {files[0]} should lie in {folder / name} or {folder / 'images' / name}; "
            f"{'several folders fit: ' + ', '.join(map(str, places)) if places else 'neither is there'}."
        )
    return files[0], places[0]


def read_json(path: Path) -> object:
    """What a JSON file holds.

    Raises:
        UserError: the file is missing, or not JSON; line and column are named.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}. "
            "If it was downloaded or copied, it may be cut short: fetch it again."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The annotation file {path} cannot be read: {error}.") from None


def read_coco(path: Path) -> COCO:
    """An annotation file as pycocotools' COCO.

    Raises:
        UserError: as `read_json` and `as_coco`.
    """
    return as_coco(read_json(path), path)


def as_coco(content: object, path: Path) -> COCO:
    """The content of the annotation file `path` as pycocotools' COCO, without its prints.

    `iscrowd` and `area`, which the evaluation reads, are filled in where they are missing: 0, and the
    area of the box.

    Raises:
        UserError: it is not in COCO's format.
    """
    for part, keys in _REQUIRED.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path} has no list '{part}': it is not an annotation file in COCO's format.")
        _check_rows(path, part, rows, keys)
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _check_rows(path: Path, part: str, rows: list, keys: dict[str, type]) -> None:
    """Every entry has its keys, of the right type, and an id of its own."""
    seen = set()
    for number, row in enumerate(rows):
        for key, kind in keys.items():
            if not isinstance(row, dict) or key not in row:
                raise UserError(f"{path}: entry {number} of '{part}' has no '{key}'.")
            value = row[key]
            good = type(value) is kind and (key not in ("width", "height") or value > 0)
            if key == "bbox" and good:
                good = len(value) == 4 and all(isinstance(v, int | float) for v in value)
            if not good:
                raise UserError(f"{path}: entry {number} of '{part}' has an impossible '{key}': {value!r}.")
        if row["id"] in seen:
            raise UserError(f"{path}: the id {row['id']} stands twice in '{part}'; ids must be different.")
        seen.add(row["id"])


def to_xyxy(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """COCO's x y w h (N, 4) to x1 y1 x2 y2 float32, clipped to pictures of `sizes` (N, 2), (w, h)."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners, 0, np.tile(sizes, 2)).astype(np.float32)


def flip_boxes(boxes: np.ndarray, width: int, height: int, hflip: bool, vflip: bool) -> np.ndarray:
    """x1 y1 x2 y2 (N, 4) of the mirrored picture; hflip is left to right, vflip top to bottom."""
    x1, y1, x2, y2 = boxes.T
    if hflip:
        x1, x2 = width - x2, width - x1
    if vflip:
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def is_coco_line(annotation: dict) -> bool:
    """Whether this is one of the two boxes without height that COCO train2017 is known to hold."""
    return COCO_LINES.get(annotation["id"]) == annotation["image_id"] and min(annotation["bbox"][2:]) == 0


class CocoDataset(Dataset):
    """The pictures of one split with their boxes, labels and masks.

    Attributes:
        coco: the annotations as they are, crowds included, for the evaluation.
        class_map: raw category ids to labels and back.
        image_ids: list[int], ascending; index i of the data set is image_ids[i].
        aspect_ratios: list[float], width / height, in the same order.
    """

    def __init__(
        self, annotations: Path, images: Path, class_map: ClassMap | None = None, coco: COCO | None = None
    ) -> None:
        """Read the annotations and check what is cheap to check; no picture is opened yet.

        Args:
            class_map: the labels to give; by default those of the categories in the file.
            coco: the annotations, where they have been read already: COCO's own take seconds.

        Raises:
            UserError: a file or folder is missing, or an annotation cannot be trained on.
        """
        self.annotations, self.images = Path(annotations), Path(images)
        if not self.images.is_dir():
            raise UserError(f"There is no picture folder {self.images}.")
        self.coco = coco or read_coco(self.annotations)
        self.class_map = class_map or ClassMap.from_coco(self.coco)
        self.image_ids = sorted(self.coco.imgs)
        images_in_order = [self.coco.imgs[i] for i in self.image_ids]
        self.aspect_ratios = [image["width"] / image["height"] for image in images_in_order]
        self._labels = {c: label for label, c in enumerate(self.class_map.category_ids, start=1)}
        self._check()

    def _check(self) -> None:
        """Every annotation has a picture and a class, every object's box an area in its picture."""
        for annotation in self.coco.dataset["annotations"]:
            if annotation["image_id"] not in self.coco.imgs:
                self._refuse(annotation, "belongs to a picture that is not listed")
            if annotation["category_id"] not in self._labels:
                listed = ", ".join(str(i) for i in self._labels)
                self._refuse(annotation, f"is of category {annotation['category_id']}, not among {listed}")
        objects = [a for i in self.image_ids for a in self._objects(i)]
        images = [self.coco.imgs[a["image_id"]] for a in objects]
        sizes = np.array([(i["width"], i["height"]) for i in images], dtype=np.int64).reshape(-1, 2)
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        finite = np.isfinite(boxes).all(axis=1)
        corners = to_xyxy(np.where(finite[:, None], boxes, 0), sizes)
        for bad, what in (
            (~finite, "which is not finite"),
            ((boxes[:, 2:] <= 0).any(axis=1), "whose width or height is not above 0"),
            ((corners[:, 2:] <= corners[:, :2]).any(axis=1), "no part of which is inside its picture"),
        ):
            for row in np.flatnonzero(bad):
                self._refuse(objects[row], f"has the box (x y w h) {objects[row]['bbox']}, {what}")

    def _refuse(self, annotation: dict, what: str) -> None:
        folder = self.annotations.parent
        folder = folder.parent if folder.name == "annotations" else folder
        raise UserError(
            f"{self.annotations}: annotation {annotation['id']} of image {annotation['image_id']} {what}. "
            f"`python -m minimrcnn data check {folder}` lists everything that is wrong."
        )

    def _objects(self, image_id: int) -> list[dict]:
        """The annotations of a picture that are trained on: no crowds."""
        annotations = self.coco.imgToAnns.get(image_id, [])
        return [a for a in annotations if not a["iscrowd"] and not is_coco_line(a)]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, request: Request | int) -> tuple[Tensor, dict]:
        """The picture (3, H, W) uint8 and its target.

        The target holds boxes (N, 4) float32 xyxy in native pixels, labels (N,) int64, masks
        (MaskCrops), image_id () int64. Crowds are left out; N is 0 where nothing is annotated.
        """
        index, hflip, vflip = request if isinstance(request, tuple) else (request, False, False)
        image = self.coco.imgs[self.image_ids[index]]
        width, height = image["width"], image["height"]
        picture = read_picture(self.images / image["file_name"], width, height)
        flipped = [axis for axis, flip in ((1, vflip), (2, hflip)) if flip]
        picture = picture.flip(flipped) if flipped else picture
        objects = self._objects(image["id"])
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        boxes = flip_boxes(to_xyxy(boxes, np.array([width, height])), width, height, hflip, vflip)
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in objects], dtype=torch.int64),
            "masks": self._masks(objects, width, height, hflip, vflip),
            "image_id": torch.tensor(image["id"]),
        }
        return picture, target

    def _masks(self, objects: list[dict], width: int, height: int, hflip: bool, vflip: bool) -> MaskCrops:
        pixels, boxes = [np.zeros(0, np.uint8)], []
        for annotation in objects:
            try:
                crop, box = rasterise(annotation.get("segmentation"), width, height)
            except Exception as error:  # pycocotools raises bare Exception
                self._refuse(annotation, f"has a segmentation that cannot be read: {error}")
            pixels.append(crop[:: -1 if vflip else 1, :: -1 if hflip else 1].ravel())
            boxes.append(box)
        boxes = flip_boxes(np.array(boxes, dtype=np.int64).reshape(-1, 4), width, height, hflip, vflip)
        return MaskCrops(torch.from_numpy(np.concatenate(pixels)), torch.from_numpy(boxes))
