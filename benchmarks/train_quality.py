"""The same data and the same seconds of training: torchvision's MaskRCNN against the mini model.

    python -m benchmarks.train_quality --data data/toybox --seconds 240
    python -m benchmarks.train_quality --data DIR --seconds 240 --peer resnet18

The peer is torchvision's MaskRCNN: around the mini model's own backbone, anchors, optimiser and
schedule (`--peer same`), or with a ResNet-18 FPN-64 on C2 to C4, SGD at .01 with 50 steps of warm-up and
a tenth for the last fifth of the time (`--peer resnet18`). Ours is `python -m minimrcnn train`.
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.common import THREADS, start
from minimrcnn.backbone import Backbone
from minimrcnn.config import ARCHITECTURES, CONVENTIONS
from minimrcnn.datasets.coco import CocoDataset, Request, find_split
from minimrcnn.engine.evaluate import coco_metrics
from minimrcnn.pasting import encode_grids


class NamedPyramid(nn.Module):
    """The mini model's backbone, as torchvision wants one: an ordered dict and `out_channels`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(ARCHITECTURES["mini"], CONVENTIONS["torchvision"])
        self.out_channels = ARCHITECTURES["mini"].fpn_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(zip(["0", "1", "2", "3", "pool"], self.backbone(images), strict=True))


def peer_model(kind: str, classes: int, side: int) -> MaskRCNN:
    """torchvision's MaskRCNN for pictures of that side in pixels."""
    size = {"min_size": side, "max_size": side}
    if kind == "same":
        mini = ARCHITECTURES["mini"]
        anchors = AnchorGenerator(tuple((s,) for s in mini.anchor_sizes), (mini.anchor_ratios,) * 5)
        return MaskRCNN(NamedPyramid(), classes, rpn_anchor_generator=anchors, **size)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[1, 2, 3],
    )
    backbone.fpn = type(backbone.fpn)([64, 128, 256], 64, backbone.fpn.extra_blocks)
    backbone.out_channels = 64
    anchors = AnchorGenerator(tuple((s,) for s in (16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 4)
    return MaskRCNN(backbone, classes, rpn_anchor_generator=anchors, **size)


def optimiser_for(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """AdamW as the mini recipe has it, or SGD."""
    if kind == "same":
        decayed = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=2e-3)
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def rate(kind: str, step: int, share: float) -> float:
    """What the learning rate is multiplied by after `share` of the time."""
    warm = min(1.0, (step + 1) / 50)
    if kind == "same":
        return warm * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
    return warm * (0.1 if share > 0.8 else 1.0)


def train_peer(
    kind: str, dataset: CocoDataset, side: int, seconds: float, batch: int
) -> tuple[MaskRCNN, int]:
    """Train for so many seconds; random flips; returns the model and its number of steps."""
    model = peer_model(kind, len(dataset.class_map.names) + 1, side).train()
    optimiser = optimiser_for(model, kind)
    base = optimiser.param_groups[0]["lr"]
    begun, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        images, targets = [], []
        while len(images) < batch:
            index, flip = int(torch.randint(len(dataset), ())), bool(torch.rand(()) < 0.5)
            image, target = dataset[Request(index, flip, kind == "resnet18" and bool(torch.rand(()) < 0.5))]
            if len(target["boxes"]):
                images.append(image / 255)
                targets.append(target | {"masks": target["masks"].to_dense(*image.shape[1:])})
        for group in optimiser.param_groups:
            group["lr"] = base * rate(kind, step, spent / seconds)
        optimiser.zero_grad()
        sum(model(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
    return model.eval(), step


@torch.inference_mode()
def evaluate_peer(model: MaskRCNN, dataset: CocoDataset) -> dict[str, dict[str, float]]:
    """The COCO figures of torchvision's model on a split whose pictures no resizing changes."""
    results = []
    model.transform.postprocess = lambda result, sizes, originals: result  # the grids, not yet pasted
    for index in range(len(dataset)):
        image, target = dataset[index]
        found = model([image / 255])[0]
        boxes = found["boxes"]
        codes = encode_grids(found["masks"][:, 0], boxes, *image.shape[1:])
        for box, label, score, code in zip(
            boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), codes, strict=True
        ):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append(
                {
                    "image_id": int(target["image_id"]),
                    "category_id": dataset.class_map.category(label),
                    "score": score,
                    "bbox": xywh,
                    "segmentation": code,
                }
            )
    return {kind: coco_metrics(dataset.coco, results, kind) for kind in ("bbox", "segm")}


def train_ours(data: Path, side: int, seconds: float) -> dict[str, dict[str, float]]:
    """`python -m minimrcnn train` with the same limit; its metrics.json."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "minimrcnn", "train", "--data", str(data), "--config", "mini"]
        command += ["--out", str(run), "--time-limit", str(seconds)]
        command += ["--set", f"min_size={side}", "--set", f"max_size={side}"]
        subprocess.run(command, check=True)
        return json.loads((run / "metrics.json").read_text())


def main() -> None:
    """Both sides, one after the other, each alone on the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--peer", choices=["same", "resnet18"], default="same")
    arguments = parser.parse_args()
    start()
    train = CocoDataset(*find_split(arguments.data, "train"))
    val = CocoDataset(*find_split(arguments.data, "val"), train.class_map)
    batch = 4 if arguments.peer == "same" else 2
    side = max(train[0][0].shape[1:])  # of all pictures: both data sets have squares of one size
    model, steps = train_peer(arguments.peer, train, side, arguments.seconds, batch)
    sides = {f"torchvision ({steps} steps of {batch})": evaluate_peer(model, val)}
    sides["minimrcnn"] = train_ours(arguments.data, side, arguments.seconds)
    print(f"\n{arguments.seconds:.0f} s of training each on {THREADS} threads")
    for name, metrics in sides.items():
        figures = [
            f"{kind} {metrics[kind]['AP']:.3f} / {metrics[kind]['AP50']:.3f}" for kind in ("segm", "bbox")
        ]
        print(f"{name:32} AP / AP50: {',  '.join(figures)}")
    theirs, ours = (metrics["segm"]["AP"] for metrics in sides.values())
    print(f"ratio of mask AP {ours / (theirs or math.nan):.2f}")


if __name__ == "__main__":
    main()
