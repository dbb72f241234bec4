"""From a model and a data set to COCO's average precision.

Detections leave the model as small grids over their boxes, become run-length codes picture by picture,
and stay so: the memory that an evaluation needs grows by kilobytes a picture. What precision means is
left to pycocotools' own COCOeval; this file feeds it and gives its figures names.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as rle_codec
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from tqdm import tqdm

from minimrcnn import pasting
from minimrcnn.datasets.coco import ClassMap, CocoDataset, find_split, read_coco
from minimrcnn.datasets.loader import eval_loader
from minimrcnn.engine.distributed import joined
from minimrcnn.errors import UserError

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
CATEGORY_FIGURES = ("AP", "AP50", "AR100")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


# ---------------------------------------------------------------- the data set


def open_split(folder: Path, split: str, class_map: ClassMap) -> CocoDataset:
    """One split of a data set, with labels as a trained model knows them.

    The data set's categories must be among the model's, by id and by name; a model may know more.
    Raises UserError with the differences, and what `find_split` and the reader raise.
    """
    annotations, images = find_split(folder, split)
    coco = read_coco(annotations)
    check_classes(class_map, ClassMap.from_coco(coco), annotations)
    return CocoDataset(annotations, images, class_map, coco)


def check_classes(model: ClassMap, data: ClassMap, where: Path) -> None:
    """UserError if `data` has a category that `model` does not know by the same id and name."""
    known = dict(zip(model.category_ids, model.names, strict=True))
    strange = [
        f"{category} {name!r} (in the model: {f'{known[category]!r}' if category in known else 'none'})"
        for category, name in zip(data.category_ids, data.names, strict=True)
        if known.get(category) != name
    ]
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        some = ", ".join(model.names[:8]) + (", ..." if len(known) > 8 else "")
        raise UserError(
            f"{where}: {len(strange)} of its {len(data.names)} categories do not match the model: "
            f"{', '.join(strange[:5])}{more}. The model knows {len(known)}: {some}. Take a data set with the "
            "same ids and names, or fit the model to this one: model.reset_heads(num_classes), then train."
        )


# ---------------------------------------------------------------- detections


def coco_results(
    model: nn.Module, detections: dict[str, Tensor], image_id: int, size: tuple[int, int], class_map: ClassMap
) -> list[dict]:
    """The detections of one picture as COCO results.

    detections: boxes (N, 4) xyxy, scores (N,), labels (N,) and, if the model has a mask branch, masks
    (N, M, M), probabilities over each box. size: (height, width). Boxes and size are in pixels of the
    picture as it came. Of the model, its way to paste is used.

    Returns N dicts: image_id, category_id (as the data set has it), bbox (xywh), score, and segmentation
    (compressed RLE, counts a str).
    """
    boxes = detections["boxes"].float().cpu()  # (N, 4)
    corners, extents = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    results = [
        {"image_id": image_id, "category_id": class_map.category(label), "bbox": bbox, "score": score}
        for label, bbox, score in zip(
            detections["labels"].tolist(),
            torch.cat([corners, extents], dim=1).tolist(),
            detections["scores"].tolist(),
            strict=True,
        )
    ]
    if "masks" in detections:
        codes = _encode(model, detections["masks"].float().cpu(), boxes, *size)
        for result, code in zip(results, codes, strict=True):
            result["segmentation"] = code
    return results


def _encode(model: nn.Module, grids: Tensor, boxes: Tensor, height: int, width: int) -> list[dict]:
    """Grids to RLE; one mask at a time through whole pictures where `Parts.paste` was replaced."""
    paste, how = model.parts.paste, model.conventions.paste
    if paste is pasting.paste:
        return pasting.encode_grids(grids, boxes, height, width, how=how)
    codes = []
    for grid, box in zip(grids, boxes, strict=True):
        picture = paste(grid[None], box[None], height, width, how)[0] > 0.5  # (H, W)
        code = rle_codec.encode(np.asfortranarray(picture.numpy(), dtype=np.uint8))
        codes.append({"size": [height, width], "counts": code["counts"].decode("ascii")})
    return codes


@contextlib.contextmanager
def inference(model: nn.Module, device: torch.device | str) -> Iterator[None]:
    """The model on the device, in eval mode and without gradients; its mode is restored afterwards."""
    was_training = model.training
    model.to(device).eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def run(
    model: nn.Module, images: list[Tensor], device: torch.device | str, amp: str = "off"
) -> list[dict[str, Tensor]]:
    """Detections of some pictures (3, H, W) uint8, masks as grids; amp: "off", "bf16" or "fp16"."""
    moved = [image.to(device, non_blocking=True) for image in images]
    # The run-length codes are made outside: a mask's edge is not a place for bfloat16's 8 bits.
    with torch.autocast(torch.device(device).type, _AUTOCAST.get(amp), enabled=amp != "off"):
        return model.run(moved, detections=True, paste=False).detections


def detect(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    batch_size: int,
    device: torch.device | str,
    workers: int = 2,
    amp: str = "off",
) -> list[dict]:
    """COCO results of this process's share of a data set; all of it, where there is one process."""
    group = joined(device)
    loader = eval_loader(dataset, batch_size, workers, group.rank, group.world)
    share = len(range(group.rank, len(dataset), group.world))
    results = []
    shown = tqdm(total=share, desc="detect", unit="image", disable=not group.first)
    with inference(model, device), shown as bar:
        for images, targets in loader:
            found = run(model, images, device, amp)
            for image, target, detections in zip(images, targets, found, strict=True):
                size, image_id = tuple(image.shape[-2:]), int(target["image_id"])
                results += coco_results(model, detections, image_id, size, dataset.class_map)
            bar.update(len(images))
    return results


# ---------------------------------------------------------------- figures


def evaluate(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    batch_size: int,
    device: torch.device | str,
    workers: int = 2,
    amp: str = "off",
) -> dict:
    """Run the model over a data set and measure it.

    batch_size: pictures at once on this process. Where several processes work together each runs its
    share, the results are gathered, and the first process computes; the others return {}.

    Returns {"bbox": the twelve FIGURES, "segm": the twelve (absent without a mask branch),
    "per_category": {name: {"bbox": CATEGORY_FIGURES, "segm": ...}}, "images": number of pictures}.
    A figure is -1 where the data set has nothing to measure it on (no large objects: APl is -1).
    """
    group = joined(device)
    found = detect(model, dataset, batch_size=batch_size, device=device, workers=workers, amp=amp)
    results = [result for share in group.everyones(found) for result in share]
    if not group.first:
        return {}
    kinds = ["bbox", "segm"] if has_masks(model, results) else ["bbox"]
    metrics: dict = {"per_category": {}}
    for kind in tqdm(kinds, desc="COCOeval", unit="type", leave=False):
        metrics[kind] = coco_metrics(dataset.coco, results, kind, dataset.image_ids)
        for name, figures in metrics[kind].pop("per_category").items():
            metrics["per_category"].setdefault(name, {})[kind] = figures
    metrics["images"] = len(dataset)
    return {key: metrics[key] for key in (*kinds, "per_category", "images")}


def has_masks(model: nn.Module, results: list[dict]) -> bool:
    """Whether a model gives masks, also when it found nothing at all."""
    return "segmentation" in results[0] if results else model.architecture.masks


def coco_metrics(
    coco_gt: COCO, results: list[dict], iou_type: str, image_ids: Sequence[int] | None = None
) -> dict:
    """COCO's figures for some results, in float64 as COCOeval computes them.

    coco_gt: ground truth; it is not changed. results: COCO results of `iou_type` "bbox", "segm" or
    "keypoints"; they may be none, and are not changed. image_ids: measure on these pictures alone.

    Returns the FIGURES (of "keypoints": the KEYPOINT_FIGURES) by name, and "per_category": {name:
    CATEGORY_FIGURES (of "keypoints": AP, AP50, AR)}, from the same table of precisions. -1: there is no
    ground truth to measure on.
    """
    wanted = set(coco_gt.imgs if image_ids is None else image_ids)
    truth = _ground_truth(coco_gt, wanted)
    found = [result for result in results if result["image_id"] in wanted]
    with contextlib.redirect_stdout(io.StringIO()):  # COCOeval reports by print
        judge = COCOeval(truth, _load_results(truth, found, iou_type), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = KEYPOINT_FIGURES if iou_type == "keypoints" else FIGURES
    metrics: dict = dict(zip(names, judge.stats.tolist(), strict=True))
    metrics["per_category"] = _per_category(judge, truth)
    return metrics


def _ground_truth(coco_gt: COCO, wanted: set[int]) -> COCO:
    """A copy for COCOeval, which rewrites the annotations that it is given.

    The annotations are numbered anew from 1, because COCOeval takes a match with the annotation of id 0
    for no match; and they get the two fields which data sets that were not made by COCO leave out.
    """
    annotations = []
    for annotation in coco_gt.dataset.get("annotations", []):
        if annotation["image_id"] in wanted:
            annotation = {"iscrowd": 0, **annotation, "id": len(annotations) + 1}
            if "area" not in annotation:
                annotation["area"] = float(rle_codec.area(coco_gt.annToRLE(annotation)))
            annotations.append(annotation)
    images = [image for image in coco_gt.dataset["images"] if image["id"] in wanted]
    return _indexed(images, annotations, coco_gt.dataset["categories"])


def _indexed(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _load_results(truth: COCO, results: list[dict], iou_type: str) -> COCO:
    """`COCO.loadRes`, which alone cannot take an empty list, and measures a mask by its box if it has one."""
    if not results:
        return _indexed(truth.dataset["images"], [], truth.dataset["categories"])
    left_out = {"segm": "bbox", "bbox": "segmentation", "keypoints": "segmentation"}[iou_type]
    return truth.loadRes([{k: v for k, v in result.items() if k != left_out} for result in results])


def _per_category(judge: COCOeval, truth: COCO) -> dict[str, dict[str, float]]:
    """AP, AP50 and AR over all areas for each category, by name; its id is added where names repeat."""
    precision, recall = judge.eval["precision"], judge.eval["recall"]  # (T, R, K, A, M), (T, K, A, M)
    names = {category: truth.cats[category]["name"] for category in judge.params.catIds}
    count = Counter(names.values())
    half = int(np.argmin(np.abs(judge.params.iouThrs - 0.5)))
    ar = "AR" if judge.params.iouType == "keypoints" else "AR100"  # of at most 20, and of 100 detections
    return {
        name if count[name] == 1 else f"{name} ({category})": {
            "AP": _mean(precision[:, :, k, 0, -1]),
            "AP50": _mean(precision[half, :, k, 0, -1]),
            ar: _mean(recall[:, k, 0, -1]),
        }
        for k, (category, name) in enumerate(names.items())
    }


def _mean(values: np.ndarray) -> float:
    """Mean of what was measured; -1 marks what was not."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


# ---------------------------------------------------------------- the report


def machine(device: torch.device | str) -> dict:
    """What seconds were measured on, as plain values."""
    name = platform.processor() or platform.machine()
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif (cpus := Path("/proc/cpuinfo")).exists():  # Linux: the name that platform does not give
        lines = [line.partition(":") for line in cpus.read_text().splitlines()]
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "processes": joined(device).world,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def table(metrics: dict) -> str:
    """COCO's table in text: one line a category, then the twelve figures, boxes beside masks.

    The figures are last, where a terminal still shows them after 80 categories.
    """
    kinds = [kind for kind in ("bbox", "segm") if kind in metrics]
    heads = {"bbox": "box", "segm": "mask"}
    width = max([8, *(len(name) for name in metrics["per_category"])])
    columns = [(kind, figure) for kind in kinds for figure in CATEGORY_FIGURES]
    lines = [f"{'':<{width}}" + "".join(f"{heads[kind]:>8}{'':16}" for kind in kinds).rstrip()]
    lines.append(f"{'category':<{width}}" + "".join(f"{figure:>8}" for _, figure in columns))
    for name, figures in metrics["per_category"].items():
        lines.append(f"{name:<{width}}" + "".join(_cell(figures[kind][figure]) for kind, figure in columns))
    lines += ["", f"{'':<38}" + "".join(f"{heads[kind]:>8}" for kind in kinds)]
    for name in FIGURES:
        cells = "".join(_cell(metrics[kind][name]) for kind in kinds)
        lines.append(f"{name:<7}{_MEANING[name]:<31}{cells}")
    return "\n".join(lines)


_MEANING = {
    "AP": "mean over IoU .50, .55, ... .95",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "APs": "small objects, below 32 x 32",
    "APm": "medium objects",
    "APl": "large objects, from 96 x 96",
    "AR1": "recall, 1 detection a picture",
    "AR10": "recall, 10",
    "AR100": "recall, 100",
    "ARs": "recall, small objects",
    "ARm": "recall, medium objects",
    "ARl": "recall, large objects",
}


def _cell(value: float) -> str:
    return f"{'-':>8}" if value == -1 else f"{value:8.3f}"


def print_table(metrics: dict) -> None:
    """Print `table`; a dash stands where the data set has nothing to measure the figure on."""
    print(table(metrics))


def write_json(path: Path, plain: dict | list) -> None:
    """Write JSON under a temporary name, then rename: the file is the old one or the new one, whole.

    A list goes one entry a line: results are many, and a line can be searched for.
    """
    text = json.dumps(plain, indent=2)
    if isinstance(plain, list):
        text = "[\n" + ",\n".join(json.dumps(entry) for entry in plain) + "\n]"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = error.strerror or error
        raise UserError(f"cannot write {path}: {why}. Make room or choose another path.") from error
