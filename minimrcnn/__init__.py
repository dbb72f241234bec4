"""minimrcnn: Mask R-CNN (He et al. 2017), small enough to be read and exact enough to be used.

    import minimrcnn
    model = minimrcnn.mini(weights="TOYBOX")  # or maskrcnn_resnet50_fpn(weights="COCO_V1")
    detections = model([picture])             # torchvision's call and torchvision's answer

`parts.py` holds the table of the functions that can be replaced, `config.py` and `recipes.py` every number.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimrcnn.lifting import per_image
    from minimrcnn.model import MaskRCNN, Output
    from minimrcnn.parts import Parts

__all__ = [
    "MaskRCNN",
    "Output",
    "Parts",
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext101_32x8d_fpn",
    "maskrcnn_resnext101_64x4d_fpn",
    "mini",
    "per_image",
]
__version__ = "0.1.0"

_HOME = {"MaskRCNN": "model", "Output": "model", "Parts": "parts", "per_image": "lifting"}


def __getattr__(name: str) -> object:
    """Import a class when it is first asked for: `--help` need not wait seconds for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'minimrcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minimrcnn.{_HOME[name]}"), name)


def _named(name: str, *arguments: object, **changes: object) -> MaskRCNN:
    from minimrcnn.weights import named_model

    return named_model(name, *arguments, **changes)


def maskrcnn_resnet50_fpn(
    *,
    weights: str | None = None,
    weights_backbone: str | None = None,
    conventions: str = "torchvision",
    **changes,
) -> MaskRCNN:
    """Mask R-CNN with ResNet-50 and FPN, torchvision's model of that name.

    Args:
        weights: "COCO_V1", torchvision's published file (labels are COCO's 91 raw ids), or None.
        weights_backbone: "IMAGENET1K_V1" or None; not looked at where `weights` is given.
        conventions: "torchvision", "detectron2" or "paper".
        changes: any field of config.Architecture, such as num_classes=3 or score_threshold=0.5.

    Raises:
        UserError: the weights are neither in torch hub's cache nor to be fetched.
    """
    return _named("maskrcnn_resnet50_fpn", weights, weights_backbone, conventions, **changes)


def maskrcnn_resnet101_fpn(
    *,
    weights: None = None,
    weights_backbone: str | None = None,
    conventions: str = "torchvision",
    **changes: object,
) -> MaskRCNN:
    """Mask R-CNN with ResNet-101 and FPN (paper, Table 2a). No weights of it are published.

    Arguments as `maskrcnn_resnet50_fpn`.
    """
    return _named("maskrcnn_resnet101_fpn", weights, weights_backbone, conventions, **changes)


def maskrcnn_resnext101_64x4d_fpn(
    *,
    weights: None = None,
    weights_backbone: str | None = None,
    conventions: str = "torchvision",
    **changes: object,
) -> MaskRCNN:
    """Mask R-CNN with the paper's ResNeXt-101 (footnote 3). Arguments as `maskrcnn_resnet101_fpn`."""
    return _named("maskrcnn_resnext101_64x4d_fpn", weights, weights_backbone, conventions, **changes)


def maskrcnn_resnext101_32x8d_fpn(
    *,
    weights: None = None,
    weights_backbone: str | None = None,
    conventions: str = "torchvision",
    **changes: object,
) -> MaskRCNN:
    """Mask R-CNN with detectron2's ResNeXt-101. Arguments as `maskrcnn_resnet101_fpn`."""
    return _named("maskrcnn_resnext101_32x8d_fpn", weights, weights_backbone, conventions, **changes)


def fasterrcnn_resnet50_fpn(
    *,
    weights: str | None = None,
    weights_backbone: str | None = None,
    conventions: str = "torchvision",
    **changes,
) -> MaskRCNN:
    """The same without a mask branch: Faster R-CNN. Arguments as `maskrcnn_resnet50_fpn`."""
    return _named("fasterrcnn_resnet50_fpn", weights, weights_backbone, conventions, **changes)


def mini(*, weights: str | None = None, conventions: str = "torchvision", **changes: object) -> MaskRCNN:
    """A small ResNet-FPN with group normalisation that trains from nothing on a CPU in minutes.

    Args:
        weights: "TOYBOX", trained on the toybox data set and shipped with the package (8 classes, in
            eval mode, no network needed), or None.
        conventions, changes: as `maskrcnn_resnet50_fpn`; the trained weights know torchvision's alone.
    """
    return _named("mini", weights, None, conventions, **changes)
