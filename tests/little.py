"""A model of 30,000 parameters with lively outputs, pictures and targets for it: passes take milliseconds."""

from __future__ import annotations

from dataclasses import replace

import torch
from parity import picture, target

from minimrcnn import MaskRCNN, Parts
from minimrcnn.config import ARCHITECTURES, CONVENTIONS, Architecture
from minimrcnn.parts import DEFAULT

LITTLE = replace(
    ARCHITECTURES["mini"],
    num_classes=4,
    widths=(8, 8, 16, 16),
    stem_width=8,
    fpn_channels=16,
    rpn_samples=32,
    rpn_pre_nms=(60, 50),
    rpn_post_nms_train=40,
    rpn_post_nms_test=30,
    roi_samples=24,
    box_hidden=32,
    mask_convs=1,
    mask_channels=16,
    canonical_scale=56.0,
    min_size=(96,),
    max_size=128,
    detections=10,
)


def little_model(
    conventions: str = "torchvision",
    parts: Parts = DEFAULT,
    architecture: Architecture = LITTLE,
    **changes,
) -> MaskRCNN:
    """The same weights at each call; the last layers scaled so that no two scores are nearly equal."""
    torch.manual_seed(0)
    model = MaskRCNN(replace(architecture, **changes), CONVENTIONS[conventions], parts)
    with torch.no_grad():
        model.rpn.head.cls_logits.weight.mul_(100)
        model.rpn.head.bbox_pred.weight.mul_(10)
        model.roi_heads.box_predictor.cls_score.weight.mul_(20)
    return model


def scene(sizes: tuple = ((96, 120), (80, 70)), counts: tuple = (3, 2)) -> tuple[list, list[dict]]:
    """Pictures and targets; image ids are 100, 101, ..."""
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    targets = [
        target(*size, count, 100 + i) for i, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]
    for t in targets:
        t["labels"] = t["labels"] % 3 + 1
    return images, targets
