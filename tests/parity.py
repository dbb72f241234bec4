"""torchvision's Mask R-CNN with weights that give detections, ours with the same, and how to compare them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

import minimrcnn
from minimrcnn.structures import Samples

FEATURE = 1e-4  # largest difference of features and logits
PIXEL = 1e-3  # of box corners
SCORE = 1e-4  # of scores


def picture(height: int, width: int, seed: int, blob: int = 20) -> Tensor:
    """Coloured blobs of about `blob` px with a little noise, float 0..1: (3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // blob + 2, width // blob + 2, generator=generator)
    blobs = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]
    return (blobs + 0.1 * torch.rand(3, height, width, generator=generator)).clamp(0, 1)


def target(height: int, width: int, count: int, seed: int) -> dict[str, Tensor]:
    """`count` ellipses with their boxes: a target in torchvision's format."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([0.6 * width, 0.6 * height])
    size = (0.1 + 0.3 * torch.rand(count, 2, generator=generator)) * torch.tensor([width, height])
    boxes = torch.cat([corner, corner + size], dim=1)  # (N, 4)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        u, v = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        mask[:] = (u * u + v * v < 1).to(torch.uint8)
    labels = torch.randint(1, 91, (count,), generator=generator)
    return {"boxes": boxes, "labels": labels, "masks": masks, "image_id": torch.tensor(seed)}


def torchvision_model(pictures: list[Tensor], seed: int = 0, **arguments) -> TorchvisionMaskRCNN:
    """A torchvision model whose random weights are scaled until every stage has something to say."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = TorchvisionMaskRCNN(backbone, num_classes=91, **arguments).eval()
    calibrate(model, pictures)
    return model


SPREAD = {  # standard deviation of a layer's output; 1 where nothing is said
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.05,
    "roi_heads.box_predictor.cls_score": 1.2,
    "roi_heads.box_predictor.bbox_pred": 0.5,
}


def calibrate(model: TorchvisionMaskRCNN, pictures: list[Tensor]) -> None:
    """Give the frozen norms statistics near those of the pictures, and each later layer a set spread.

    A network of raw random weights answers everywhere the same plus a ripple: its boxes would compare
    the rounding of large constants, not the two implementations.
    """
    hooks, done = [], set()
    last = {block.bn3 for block in model.modules() if isinstance(block, Bottleneck)}

    def norm_hook(module: FrozenBatchNorm2d, inputs: tuple) -> None:
        mean, var = inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3))
        noise = torch.rand(4, len(mean))
        module.running_mean.copy_(mean + (noise[0] - 0.5) * var.mean().sqrt())
        module.running_var.copy_(var.mean() * (0.5 + noise[1]))  # of all channels: none is near 0
        module.weight.copy_((0.5 + noise[2]) * (0.1 if module in last else 1.0))
        module.bias.copy_(noise[3] - 0.5)

    def layer_hook(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
            if name in done or output.numel() == 0:
                return None
            done.add(name)  # the RPN's head comes by once a level; P2 decides
            channels = output.transpose(0, 1).flatten(1) if output.dim() == 4 else output.T
            mean = channels.mean(dim=1)
            factor = SPREAD.get(name, 1.0) / (channels - mean[:, None]).std()
            module.weight.mul_(factor)
            module.bias.copy_((module.bias - mean) * factor)
            return (output - mean.view((-1, 1, 1) if output.dim() == 4 else (-1,))) * factor

        return hook

    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            hooks.append(module.register_forward_pre_hook(norm_hook))
        elif not name.startswith("backbone.body") and isinstance(
            module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d
        ):
            hooks.append(module.register_forward_hook(layer_hook(name)))
    with torch.no_grad():
        model(pictures)
    for hook in hooks:
        hook.remove()


def our_model(theirs: TorchvisionMaskRCNN, **changes: object) -> minimrcnn.MaskRCNN:
    """Ours with the weights of torchvision's."""
    model = minimrcnn.maskrcnn_resnet50_fpn(**changes)
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model.eval()


@torch.no_grad()
def torchvision_stages(model: TorchvisionMaskRCNN, pictures: list[Tensor]) -> dict[str, object]:
    """What torchvision's model computes on the way, by the names that ours gives to it."""
    model.eval()
    batch, _ = model.transform(pictures)
    features = model.backbone(batch.tensors)
    objectness, deltas = model.rpn.head(list(features.values()))
    proposals, _ = model.rpn(batch, features)
    seen = []
    hook = model.roi_heads.box_predictor.register_forward_hook(lambda *call: seen.append(call[2]))
    detections, _ = model.roi_heads(features, proposals, batch.image_sizes)
    hook.remove()
    logits, box_deltas = seen[0]
    finished = model.transform.postprocess(
        copy.deepcopy(detections), batch.image_sizes, [tuple(p.shape[-2:]) for p in pictures]
    )
    return {
        "batch": batch,
        "pyramid": list(features.values()),
        "objectness": [o.permute(0, 2, 3, 1).flatten(1) for o in objectness],
        "deltas": [d.permute(0, 2, 3, 1).reshape(len(d), -1, 4) for d in deltas],
        "anchors": model.rpn.anchor_generator(batch, list(features.values()))[0],
        "proposals": proposals,
        "class_logits": logits,
        "box_deltas": box_deltas.unflatten(1, (-1, 4)),
        "detections": detections,
        "finished": finished,
    }


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, which must have one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()) if ours.numel() else 0.0


def pairing(ours: Tensor, theirs: Tensor) -> Tensor:
    """Which row of `ours` is each row of `theirs`: boxes (N, 4) that are the same but for their order.

    Two equal scores may come in either order, so boxes are paired by place; each has to have a partner.
    """
    assert ours.shape == theirs.shape
    if not len(ours):
        return torch.zeros(0, dtype=torch.int64)
    distance = (ours[None] - theirs[:, None]).abs().amax(dim=2)  # (theirs, ours)
    nearest, row = distance.min(dim=1)
    assert nearest.max() <= PIXEL, f"{int((nearest > PIXEL).sum())} of {len(ours)} boxes have no partner"
    assert len(row.unique()) == len(row), "two boxes have the same partner"
    return row


class SameSamples:
    """Stands in for torchvision's sampler: takes the samples that our model chose."""

    def __init__(self, rows: list[tuple[Tensor, Tensor]]) -> None:
        self.rows = rows  # a picture: (positives, negatives), rows among torchvision's candidates

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for label, (positive, negative) in zip(labels, self.rows, strict=True):
            # Their labels must be of one mind with our choice.
            assert (label[positive] >= 1).all() and (label[negative] == 0).all()
            for rows, masks in ((positive, positives), (negative, negatives)):
                masks.append(torch.zeros_like(label, dtype=torch.uint8).index_fill(0, rows, 1))
        return positives, negatives


def chosen_rows(samples: Samples, to_theirs: list[Tensor] | None = None) -> list[tuple[Tensor, Tensor]]:
    """Our samples as (positives, negatives) a picture, translated to torchvision's rows."""
    rows = []
    for i, (index, positive, valid) in enumerate(
        zip(samples.index, samples.positive, samples.valid, strict=True)
    ):
        pair = index[positive & valid], index[~positive & valid]
        rows.append(tuple(to_theirs[i][p] for p in pair) if to_theirs else pair)
    return rows


def losses_of_both(ours, theirs, pictures, targets) -> SimpleNamespace:
    """The losses of both models, in train mode, on the samples that ours chooses."""
    keep = ("train_proposals", "rpn_samples", "roi_samples", "roi_candidates", "mask_targets")
    output = ours.train().run(pictures, targets, losses=True, keep=keep, key=7)
    stages, dtype = output.stages, next(theirs.parameters()).dtype
    theirs.train()
    batch, resized = theirs.transform(pictures, targets)
    batch.tensors = batch.tensors.to(dtype)
    resized = [t | {"boxes": t["boxes"].to(dtype)} for t in resized]
    features = theirs.backbone(batch.tensors)
    theirs.rpn.fg_bg_sampler = SameSamples(chosen_rows(stages["rpn_samples"]))
    reference, their_losses = theirs.rpn(batch, features, resized)
    proposals, to_theirs = stages["train_proposals"], []
    for i, boxes in enumerate(reference):
        row = pairing(proposals.boxes[i][proposals.valid[i]].to(dtype), boxes)
        # Ours: padded proposals, then padded ground truth. Theirs: proposals, then ground truth.
        rows = torch.full((stages["roi_candidates"].shape[1],), -1)
        rows[row] = torch.arange(len(boxes))
        number = len(targets[i]["boxes"])
        rows[proposals.valid.shape[1] :][:number] = len(boxes) + torch.arange(number)
        to_theirs.append(rows)
    theirs.roi_heads.fg_bg_sampler = SameSamples(chosen_rows(stages["roi_samples"], to_theirs))
    _, head_losses = theirs.roi_heads(features, reference, batch.image_sizes, resized)
    ours.eval(), theirs.eval()
    return SimpleNamespace(ours=output.losses, theirs=head_losses | their_losses, stages=stages)
