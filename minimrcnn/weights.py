"""Models from configurations, from torchvision's published files, and from checkpoints of one's own."""

from __future__ import annotations

import urllib.error
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torchvision.models import (
    ResNet50_Weights,
    ResNet101_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
)
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, MaskRCNN_ResNet50_FPN_Weights

from minimrcnn.backbone import FrozenBatchNorm2d
from minimrcnn.config import ARCHITECTURES, CONVENTIONS, Architecture, Conventions
from minimrcnn.datasets.coco import ClassMap
from minimrcnn.errors import UserError
from minimrcnn.key_names import modern_names
from minimrcnn.model import MaskRCNN
from minimrcnn.parts import DEFAULT, Parts
from minimrcnn.recipes import Config

TOYBOX = Path(__file__).parent / "assets" / "mini_toybox.pt"

# Which published backbone belongs to a body, by (blocks, groups).
BACKBONES: dict[tuple, WeightsEnum] = {
    ((3, 4, 6, 3), 1): ResNet50_Weights.IMAGENET1K_V1,
    ((3, 4, 23, 3), 1): ResNet101_Weights.IMAGENET1K_V1,
    ((3, 4, 23, 3), 32): ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
    ((3, 4, 23, 3), 64): ResNeXt101_64X4D_Weights.IMAGENET1K_V1,
}
COCO: dict[str, WeightsEnum] = {
    "maskrcnn_resnet50_fpn": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "fasterrcnn_resnet50_fpn": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
}


def fetch(weights: WeightsEnum) -> dict[str, Tensor]:
    """A published file, by torchvision's own code, from its cache or from the network.

    Raises:
        UserError: it is not in the cache and the network does not give it.
    """
    try:
        return load_state_dict_from_url(
            weights.url, progress=True, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"cannot fetch {weights}: {error}. With a network run it again; without one put the file "
            f"{Path(weights.url).name} from {weights.url} into {cache}, or ask for no weights "
            "(weights=None; --set backbone_weights=none), or use weights='TOYBOX' of the mini model."
        ) from error


def set_frozen_eps(model: nn.Module, eps: float) -> None:
    """Set the eps of every frozen batch norm: no state dict holds it."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps


def load_backbone(model: MaskRCNN) -> None:
    """Fill the body of the backbone with torchvision's ImageNet weights."""
    a = model.architecture
    weights = BACKBONES.get((a.blocks, a.groups))
    if weights is None or a.block != "bottleneck":
        raise UserError(
            "there are no published ImageNet weights for this backbone; use weights_backbone=None "
            "(--set backbone_weights=none)"
        )
    state = {k: v for k, v in modern_names(fetch(weights)).items() if not k.startswith("fc.")}
    model.backbone.body.load_state_dict(state, strict=True)


def build_model(config: Config, parts: Parts = DEFAULT) -> MaskRCNN:
    """The model of a configuration, its backbone filled if the configuration says so."""
    model = MaskRCNN(config.architecture, config.conventions, parts)
    if config.backbone_weights not in ("none", "IMAGENET1K_V1"):
        raise UserError(f"backbone_weights={config.backbone_weights!r}: want none or IMAGENET1K_V1")
    if config.backbone_weights == "IMAGENET1K_V1":
        load_backbone(model)
    return model


def named_model(
    name: str, weights: str | None, weights_backbone: str | None, conventions: str, **changes: object
) -> MaskRCNN:
    """A model by its architecture's name, as the functions of `minimrcnn` give it.

    Args:
        weights: None, "COCO_V1" (torchvision's published file, 91 raw category ids) or, for mini, "TOYBOX".
        weights_backbone: None or "IMAGENET1K_V1"; ignored where `weights` fills the whole model.
        conventions: "torchvision", "detectron2" or "paper".
        changes: fields of config.Architecture, such as num_classes or score_threshold.
    """
    known = {f.name for f in fields(Architecture)}
    if set(changes) - known:
        raise TypeError(f"{name}: no field {sorted(set(changes) - known)}; there are {sorted(known)}")
    if conventions not in CONVENTIONS:
        raise ValueError(f"conventions={conventions!r}: there are {', '.join(CONVENTIONS)}")
    if weights == "TOYBOX" and name == "mini":
        if conventions != "torchvision":
            raise UserError(f"weights='TOYBOX' was trained by torchvision's conventions, not {conventions!r}")
        return shipped_mini(**changes)
    config = Config(
        replace(ARCHITECTURES[name], **changes), CONVENTIONS[conventions], backbone_weights="none"
    )
    if weights is None and weights_backbone is not None:
        config = replace(config, backbone_weights=weights_backbone)
    model = build_model(config)
    if weights is not None:
        if weights != "COCO_V1" or name not in COCO:
            have = [*(["COCO_V1"] if name in COCO else []), *(["TOYBOX"] if name == "mini" else [])]
            raise UserError(
                f"{name} has no weights {weights!r}; it has {', '.join(have) or 'none'}. "
                "A run of your own is loaded by minimrcnn.weights.from_checkpoint."
            )
        model.load_state_dict(fetch(COCO[name]), strict=True)
        # These files were trained with eps 0, which torchvision sets after loading (overwrite_eps).
        set_frozen_eps(model, 0.0)
    return model


def shipped_mini(**changes: object) -> MaskRCNN:
    """The mini model trained on the toybox that comes with the package, in eval mode."""
    if not TOYBOX.exists():
        raise UserError(
            f"{TOYBOX.name} is not part of this version of the package: `make train` makes a model like it"
        )
    model, _ = from_checkpoint(torch.load(TOYBOX, weights_only=True, map_location="cpu"))
    for name, value in changes.items():
        if name == "num_classes":
            model.reset_heads(value)
        else:
            model.change(**{name: value})
    return model.eval()


def to_checkpoint(model: MaskRCNN, class_map: ClassMap) -> dict:
    """All that makes a model, as plain types: what torch.load(weights_only=True) accepts."""
    eps = [m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    return {
        "model": model.state_dict(),
        "architecture": plain(asdict(model.architecture)),
        "conventions": plain(asdict(model.conventions)),
        "frozen_bn_eps": eps[0] if eps else 1e-5,
        "class_map": class_map.to_plain(),
    }


def from_checkpoint(state: dict, parts: Parts = DEFAULT) -> tuple[MaskRCNN, ClassMap]:
    """The inverse of `to_checkpoint`; half precision is widened to float32.

        model, class_map = from_checkpoint(checkpoint.load(Path("runs/mini/checkpoint.pt")))

    A checkpoint holds no functions: parts of your own are given again.

    Raises:
        TypeError: a path, not what `engine.checkpoint.load` reads from it.
        UserError: the state has no model, or its parameters are not those of its architecture.
    """
    if not isinstance(state, dict):
        raise TypeError(f"a checkpoint's content is wanted, checkpoint.load(path), not {state!r}")
    try:
        architecture = Architecture(**tuples(state["architecture"]))
        conventions = Conventions(**tuples(state["conventions"]))
        class_map = ClassMap.from_plain(state["class_map"])
        weights, eps = state["model"], state["frozen_bn_eps"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint is not one of this version of minimrcnn ({error}); train again, or load its "
            "'model' with load_state_dict"
        ) from error
    model = MaskRCNN(architecture, conventions, parts)
    try:
        model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    except RuntimeError as error:
        raise UserError(f"the checkpoint's weights are not of its architecture: {error}") from error
    set_frozen_eps(model, eps)
    return model, class_map


def plain(value: object) -> object:
    """Tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def tuples(value: dict) -> dict:
    """Lists back to tuples, in the values of a dict."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
