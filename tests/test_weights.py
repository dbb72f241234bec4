"""Models by name, torchvision's state dicts, published files, and checkpoints of one's own."""

from __future__ import annotations

import re
import urllib.error

import pytest
import torch
from little import little_model, scene
from parity import FEATURE, largest_difference
from torchvision import models as tv_models
from torchvision.models import detection as tv
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import minimrcnn
from minimrcnn import weights
from minimrcnn.backbone import Backbone
from minimrcnn.backbone import FrozenBatchNorm2d as OurFrozenBatchNorm2d
from minimrcnn.config import ARCHITECTURES, CONVENTIONS, Architecture
from minimrcnn.datasets.coco import ClassMap
from minimrcnn.errors import UserError
from minimrcnn.recipes import CONFIGS


@pytest.fixture(scope="module")
def theirs():
    """torchvision's model with frozen norms of random statistics, some of them tiny."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = tv.MaskRCNN(backbone, num_classes=91)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.backbone.body.bn1.running_var[:] = 1e-5  # where an eps of 1e-5 is as much again
    model.backbone.body.bn1.weight.mul_(1e-3)
    return model.eval()


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under the key names of 2019, with batch norm's counters."""
    old = {}
    for name, value in state.items():
        name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        old[name] = value
        if name.endswith("running_var"):
            old[name.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    return old


def test_the_weight_contract(theirs):
    model = minimrcnn.maskrcnn_resnet50_fpn()
    state = model.state_dict()
    assert len(state) == 307
    assert sum(p.numel() for p in model.parameters()) == 44_401_393
    assert {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in theirs.state_dict().items()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in theirs.named_parameters() if p.requires_grad
    }


def test_new_and_old_names_load_strictly(theirs):
    new = theirs.state_dict()
    old = old_names(new)
    assert "rpn.head.conv.weight" in old and "roi_heads.mask_head.mask_fcn4.bias" in old
    assert "backbone.fpn.inner_blocks.0.weight" in old and len(old) == 360
    for state in (new, old):
        model = minimrcnn.maskrcnn_resnet50_fpn()
        report = model.load_state_dict(state, strict=True)
        assert (report.missing_keys, report.unexpected_keys) == ([], [])
        loaded = model.state_dict()
        assert not any("num_batches_tracked" in name for name in loaded)
        assert all(torch.equal(loaded[name], value) for name, value in new.items())


def test_a_wrong_key_is_still_an_error(theirs):
    model = minimrcnn.mini()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(theirs.state_dict(), strict=True)


# -- published files -----------------------------------------------------------------------------------


def test_coco_v1_has_eps_0(theirs, monkeypatch):
    """torchvision sets eps to 0 after loading the file; no state dict says so."""
    asked = {}

    def download(url, **arguments):
        asked.update(arguments, url=url)
        return old_names(theirs.state_dict())

    monkeypatch.setattr(weights, "load_state_dict_from_url", download)
    model = minimrcnn.maskrcnn_resnet50_fpn(weights="COCO_V1").eval()
    assert asked["url"] == tv.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
    assert asked["weights_only"] is True and asked["check_hash"] is True
    norms = [m for m in model.modules() if isinstance(m, OurFrozenBatchNorm2d)]
    assert len(norms) == 53 and {m.eps for m in norms} == {0.0}
    images = torch.rand(1, 3, 64, 96)
    default = minimrcnn.maskrcnn_resnet50_fpn().eval()
    default.load_state_dict(theirs.state_dict())
    before = [m.eps for m in theirs.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert set(before) == {1e-5} == {m.eps for m in default.modules() if isinstance(m, OurFrozenBatchNorm2d)}
    try:
        tv._utils.overwrite_eps(theirs, 0.0)
        with torch.no_grad():
            reference = theirs.backbone.body(images)["0"]
            ours, other = model.backbone.body(images)[0], default.backbone.body(images)[0]
    finally:
        tv._utils.overwrite_eps(theirs, 1e-5)
    scale = float(reference.abs().max())
    assert largest_difference(ours, reference) < FEATURE * max(scale, 1)
    assert largest_difference(other, reference) > 0.01 * scale  # with the wrong eps it shows


def test_no_network_names_the_cache_and_the_remedy(monkeypatch, tmp_path):
    def download(*arguments, **more):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(weights, "load_state_dict_from_url", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as error:
        minimrcnn.maskrcnn_resnet50_fpn(weights="COCO_V1")
    message = str(error.value)
    for part in (
        "no route to host",
        str(tmp_path / "checkpoints"),
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    ):
        assert part in message
    assert "weights=None" in message and "TOYBOX" in message
    with pytest.raises(UserError, match="resnet50-0676ba61"):
        minimrcnn.maskrcnn_resnet50_fpn(weights_backbone="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "build", "file"),
    [
        ("maskrcnn_resnet50_fpn", tv_models.resnet50, tv_models.ResNet50_Weights.IMAGENET1K_V1),
        ("maskrcnn_resnet101_fpn", tv_models.resnet101, tv_models.ResNet101_Weights.IMAGENET1K_V1),
    ],
)
def test_imagenet_weights_fill_the_body(name, build, file, monkeypatch):
    torch.manual_seed(1)
    source = build(weights=None).state_dict()
    asked = []
    monkeypatch.setattr(weights, "load_state_dict_from_url", lambda url, **more: asked.append(url) or source)
    model = getattr(minimrcnn, name)(weights_backbone="IMAGENET1K_V1")
    assert asked == [file.url]
    body = model.backbone.body.state_dict()
    assert all(torch.equal(value, source[key]) for key, value in body.items())
    missing = {k for k in source if k not in body}
    assert all(k.startswith("fc.") or k.endswith("num_batches_tracked") for k in missing)
    assert {m.eps for m in model.modules() if isinstance(m, OurFrozenBatchNorm2d)} == {1e-5}


def test_weights_that_do_not_exist():
    with pytest.raises(UserError, match="has no weights 'COCO_V2'; it has COCO_V1"):
        minimrcnn.maskrcnn_resnet50_fpn(weights="COCO_V2")
    with pytest.raises(UserError, match="maskrcnn_resnet101_fpn has no weights 'COCO_V1'; it has none"):
        minimrcnn.maskrcnn_resnet101_fpn(weights="COCO_V1")
    with pytest.raises(UserError, match="trained by torchvision's conventions, not 'detectron2'"):
        minimrcnn.mini(weights="TOYBOX", conventions="detectron2")
    with pytest.raises(UserError, match="mini has no weights 'COCO_V1'; it has TOYBOX"):
        minimrcnn.mini(weights="COCO_V1")
    with pytest.raises(UserError, match="no published ImageNet weights"):
        weights.load_backbone(minimrcnn.mini())
    with pytest.raises(UserError, match="backbone_weights='imagenet'"):
        weights.build_model(weights.replace(CONFIGS["mini"], backbone_weights="imagenet"))


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"no field \['number_of_classes'\].*num_classes"):
        minimrcnn.mini(number_of_classes=3)
    with pytest.raises(ValueError, match=r"conventions='torch'.*torchvision, detectron2, paper"):
        minimrcnn.mini(conventions="torch")


# -- the other models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("maskrcnn_resnet101_fpn", tv_models.resnet101),
        ("maskrcnn_resnext101_32x8d_fpn", tv_models.resnext101_32x8d),
        ("maskrcnn_resnext101_64x4d_fpn", tv_models.resnext101_64x4d),
    ],
)
def test_bodies_are_torchvisions(name, build):
    torch.manual_seed(2)
    reference = build(weights=None, norm_layer=FrozenBatchNorm2d).eval()
    with torch.no_grad():
        for module in reference.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.weight.uniform_(0.3, 0.6)  # keeps a hundred layers from exploding
    body = Backbone(ARCHITECTURES[name], CONVENTIONS["torchvision"]).body.eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    body.load_state_dict(state, strict=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours = body(images)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        for mine, layer in zip(ours, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            x = getattr(reference, layer)(x)
            assert float(x.std()) > 1e-3
            assert largest_difference(mine, x) < FEATURE * max(float(x.abs().max()), 1)


def test_resnext_models_build_and_hold_the_contract():
    for name in ("maskrcnn_resnext101_32x8d_fpn", "maskrcnn_resnext101_64x4d_fpn"):
        with torch.device("meta"):
            model = minimrcnn.MaskRCNN(ARCHITECTURES[name], CONVENTIONS["torchvision"])
        assert len(model.state_dict()) == 307 + 17 * 15  # 17 more blocks of 3 convolutions and 3 norms


def test_faster_rcnn_is_torchvisions_without_masks():
    model = minimrcnn.fasterrcnn_resnet50_fpn()
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    reference = tv.FasterRCNN(backbone, num_classes=91)
    model.load_state_dict(reference.state_dict(), strict=True)
    assert not any("mask" in name for name in model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 41_755_286  # torchvision's num_params


@pytest.mark.parametrize("norm", ["batch", "group", "frozen_batch"])
def test_every_norm_trains_and_reloads(norm):
    model = little_model(norm=norm)
    images, targets = scene()
    sum(model.train().run(images, targets, losses=True).losses.values()).backward()
    again = little_model(norm=norm)
    again.load_state_dict(model.state_dict(), strict=True)
    assert all(
        torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items() if "num_b" not in k
    )


@pytest.mark.parametrize("layers", range(6))
def test_trainable_layers_are_torchvisions(layers):
    with torch.device("meta"):
        ours = Backbone(Architecture(trainable_layers=layers), CONVENTIONS["torchvision"])
    theirs = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=layers
    )
    wanted = {n for n, p in theirs.named_parameters() if p.requires_grad}
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == wanted


# -- checkpoints ---------------------------------------------------------------------------------------

CLASSES = ClassMap((3, 7, 8), ("square", "wide", "tall"))


def test_a_checkpoint_is_plain_and_comes_back_the_same(tmp_path):
    model = little_model("detectron2", norm="frozen_batch", score_threshold=0.3)
    weights.set_frozen_eps(model, 0.0)
    torch.save(weights.to_checkpoint(model, CLASSES), tmp_path / "model.pt")
    again, classes = weights.from_checkpoint(torch.load(tmp_path / "model.pt", weights_only=True))
    assert classes == CLASSES
    assert again.architecture == model.architecture and again.conventions == model.conventions
    assert {m.eps for m in again.modules() if isinstance(m, OurFrozenBatchNorm2d)} == {0.0}
    images, _ = scene()
    with torch.no_grad():
        for a, b in zip(model.eval()(images), again.eval()(images), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_half_precision_is_widened():
    state = weights.to_checkpoint(little_model(), CLASSES)
    state["model"] = {k: v.half() for k, v in state["model"].items()}
    model, _ = weights.from_checkpoint(state)
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32}


def test_a_checkpoint_of_something_else_is_an_error():
    good = weights.to_checkpoint(little_model(), CLASSES)
    with pytest.raises(TypeError, match=r"checkpoint.load\(path\), not 'run/checkpoint.pt'"):
        weights.from_checkpoint("run/checkpoint.pt")
    with pytest.raises(UserError, match="not one of this version"):
        weights.from_checkpoint({"model": good["model"]})
    with pytest.raises(UserError, match=r"not one of this version.*new_field"):
        weights.from_checkpoint(good | {"architecture": good["architecture"] | {"new_field": 1}})
    with pytest.raises(UserError, match="not of its architecture"):
        weights.from_checkpoint(good | {"architecture": good["architecture"] | {"num_classes": 9}})
