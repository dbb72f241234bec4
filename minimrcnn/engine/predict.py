"""A trained model on pictures of your own: an overlay for each, and one file of COCO results for all."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minimrcnn.datasets.coco import ClassMap, CocoDataset
from minimrcnn.datasets.pictures import read_picture
from minimrcnn.datasets.segmentations import rasterise
from minimrcnn.engine.evaluate import coco_results, inference, run, write_json
from minimrcnn.errors import UserError

RESULTS = "predictions.json"


def predict(
    model: nn.Module,
    class_map: ClassMap,
    paths: list[Path],
    out: Path,
    *,
    score: float,
    device: torch.device | str,
) -> list[str]:
    """Detect the objects in some pictures and write what was found.

    `out` gets NAME.png for each picture, with the detections of at least `score` drawn in, and
    predictions.json: COCO results (image_id counts the pictures from 1) with file_name and
    category_name added, of every detection that the model gives (score .05 and above).

    A picture that cannot be read or drawn does not stop the others. Returns one message for each such
    picture; its image_id is not used. Raises UserError if `out` cannot be written.
    """
    from minimrcnn.show import Instances, save_overlay  # matplotlib is needed here and nowhere before

    _make_folder(out)
    results: list[dict] = []
    problems: list[str] = []
    names = overlay_names(paths)
    for number, path in enumerate(tqdm(paths, desc="predict", unit="image", file=sys.stderr), 1):
        try:
            picture = read_picture(path, None, None)
        except UserError as error:
            problems.append(str(error))
            continue
        found = detect_picture(model, picture, class_map, number, device=device)
        for result in found:
            result["file_name"] = str(path)
            result["category_name"] = class_map.names[class_map.label(result["category_id"]) - 1]
        results += found
        drawn = [result for result in found if result["score"] >= score]
        save_overlay(
            out / names[number - 1], picture, class_map.names, Instances(**instances(drawn, class_map))
        )
    write_json(out / RESULTS, results)
    return problems


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}. Choose another --out.") from error


def overlay_names(paths: list[Path]) -> list[str]:
    """A file name for each overlay: a/cat.jpg and b/cat.jpg become cat.png and cat_2.png."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name, count = path.stem, 1
        while name.lower() in taken:  # some file systems do not tell Cat.png from cat.png
            count += 1
            name = f"{path.stem}_{count}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def detect_picture(
    model: nn.Module, picture: Tensor, class_map: ClassMap, image_id: int, *, device: torch.device | str
) -> list[dict]:
    """COCO results of one picture (3, H, W) uint8, by falling score."""
    with inference(model, device):
        detections = run(model, [picture], device)[0]
        return coco_results(model, detections, image_id, tuple(picture.shape[-2:]), class_map)


def instances(results: list[dict], class_map: ClassMap) -> dict:
    """COCO results of one picture as the drawing functions want them.

    Returns boxes (N, 4) xyxy, labels (N,), masks (N arrays (H, W) uint8, or None without a mask branch)
    and scores (N,).
    """
    boxes = np.array([result["bbox"] for result in results], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    with_masks = all("segmentation" in result for result in results)
    return {
        "boxes": boxes,
        "labels": [class_map.label(result["category_id"]) for result in results],
        "masks": [_decode(result["segmentation"]) for result in results] if with_masks else None,
        "scores": [result["score"] for result in results],
    }


def _decode(code: dict) -> np.ndarray:
    """One mask (H, W) uint8 from its RLE."""
    height, width = code["size"]
    mask = np.zeros((height, width), np.uint8)
    crop, (x1, y1, x2, y2) = rasterise(code, width, height)
    mask[y1:y2, x1:x2] = crop
    return mask


def draw_gallery(model: nn.Module, dataset: CocoDataset, path: Path, *, device: torch.device | str) -> None:
    """Write ground truth beside prediction as a PNG, for 12 pictures and detections of .5 and above.

    No picture is chosen for its beauty: they are evenly spaced in the sorted list of image ids, the first
    and the last among them, and the title says so.
    """
    from minimrcnn.show import Instances, Row, save_gallery

    rows = []
    for image_id in evenly_spaced(sorted(dataset.image_ids), 12):
        picture, target = dataset[dataset.image_ids.index(image_id)]
        dense = target["masks"].to_dense(*picture.shape[-2:])
        truth = Instances(target["boxes"], target["labels"], dense, None)
        found = detect_picture(model, picture, dataset.class_map, image_id, device=device)
        drawn = instances([result for result in found if result["score"] >= 0.5], dataset.class_map)
        rows.append(Row(f"image {image_id}", picture, truth, Instances(**drawn)))
    rule = f"{len(rows)} of {len(dataset)} pictures, evenly spaced in the sorted list of image ids"
    shown = "with a score of at least .5"
    if len(dataset.class_map.names) > 1:
        shown += "; NMS works class by class, so one object may be taken for two"
    save_gallery(path, rows, dataset.class_map.names, f"{rule}\npredictions {shown}")


def evenly_spaced(items: list, count: int) -> list:
    """`count` items, the first and the last among them, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
