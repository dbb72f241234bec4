"""A data set, and a model that knows the answers: evaluation and drawing without any training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as rle_codec
import torch
from PIL import Image
from torch import Tensor, nn

from minimrcnn import pasting
from minimrcnn.config import Architecture, Conventions
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.parts import Parts

HEIGHT, WIDTH = 160, 200  # px
CATEGORIES = {3: "disc", 7: "frame", 40: "bar"}  # raw ids with gaps; labels 1, 2, 3
# picture id: (label, x1, y1, x2, y2) of each object; small, medium and large by COCO's measure
OBJECTS = {
    11: [(1, 4.0, 6.0, 30.0, 34.0), (2, 60.5, 20.0, 190.0, 150.0)],
    25: [(3, 10.0, 10.0, 90.0, 50.0), (1, 100.0, 80.0, 196.0, 158.0), (2, 20.0, 90.0, 80.0, 150.0)],
    31: [],
    90: [(2, 5.0, 5.0, 150.0, 150.0), (3, 160.0, 100.0, 180.0, 110.0)],
}


def grid(label: int) -> Tensor:
    """(28, 28) what a perfect mask head says about an object: a disc, a frame, a bar."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 28)] * 2, indexing="ij")
    shapes = {1: x**2 + y**2 < 1, 2: torch.maximum(x.abs(), y.abs()) > 0.6, 3: x.abs() <= 1}
    return shapes[label].float()


def detections(objects: list[tuple]) -> dict[str, Tensor]:
    """The objects as a model gives them, with scores .9, .88, ..."""
    return {
        "boxes": torch.tensor([box for _, *box in objects]).reshape(-1, 4),
        "labels": torch.tensor([label for label, *_ in objects], dtype=torch.int64),
        "scores": 0.9 - 0.02 * torch.arange(len(objects)),
        "masks": torch.stack([grid(label) for label, *_ in objects]) if objects else torch.zeros(0, 28, 28),
    }


def write_dataset(folder: Path, split: str = "val") -> CocoDataset:
    """The data set on the disk. Every pixel's red value is the picture's id."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir()
    images, annotations = [], []
    ids = list(CATEGORIES)
    for image_id, objects in OBJECTS.items():
        pixels = np.full((HEIGHT, WIDTH, 3), (image_id, 120, 60), np.uint8)
        Image.fromarray(pixels).save(folder / split / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": WIDTH, "height": HEIGHT})
        found = detections(objects)
        codes = pasting.encode_grids(found["masks"], found["boxes"], HEIGHT, WIDTH)
        for (label, x1, y1, x2, y2), code in zip(objects, codes, strict=True):
            annotations.append(
                {
                    "id": len(annotations),  # from 0, which COCOeval alone takes for "not matched"
                    "image_id": image_id,
                    "category_id": ids[label - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": code,
                    "area": int(rle_codec.area(code)),
                    "iscrowd": 0,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoDataset(*find_split(folder, split))


class Oracle(nn.Module):
    """Answers with `objects` (as OBJECTS) for the picture whose id it reads from the first pixel."""

    def __init__(self, objects: dict[int, list[tuple]], parts: Parts | None = None) -> None:
        super().__init__()
        self.objects, self.parts = objects, parts or Parts()
        self.conventions, self.architecture = Conventions(), Architecture(num_classes=4)

    def run(self, images: list[Tensor], *, detections: bool, paste: bool) -> SimpleNamespace:
        """`MaskRCNN.run`, as far as the evaluation uses it."""
        assert detections and not paste and not self.training
        answers = [self.objects.get(int(image[0, 0, 0]), []) for image in images]
        return SimpleNamespace(detections=[globals()["detections"](answer) for answer in answers])
