"""The door: lists of pictures and targets of any size become one batch of fixed shape.

Everything that is hidden in other models stands here: what is checked, how a picture is resized and
normalised, how boxes follow it, how much is padded.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from minimrcnn.config import Conventions
from minimrcnn.randomness import fold, uniform
from minimrcnn.structures import Batch, MaskCrops, Targets, constant


def resized_size(height: int, width: int, min_size: int, max_size: int, rounding: str) -> tuple[int, int]:
    """(height, width) after scaling the short side to `min_size`, the long side staying within `max_size`.

    "floor" is torchvision's: 800 / 388 * 388 is 799.99... in double precision, so that a short side of
    388 comes out as 799, not 800. "round" is int(x + .5).
    """
    factor = min(min_size / min(height, width), max_size / max(height, width))
    if rounding == "round":
        return int(height * factor + 0.5), int(width * factor + 0.5)
    return math.floor(height * factor), math.floor(width * factor)


def normalise_and_resize(image: Tensor, size: tuple[int, int], conventions: Conventions) -> Tensor:
    """(3, H, W) uint8 or 0..1 float to (3, *size) float32 of zero mean and unit variance."""
    pixels = image.to(torch.float32) / 255 if image.dtype == torch.uint8 else image.to(torch.float32)
    if conventions.channel_order == "bgr":
        pixels = pixels.flip(0)
    mean = constant(conventions.mean, image.device)[:, None, None]
    std = constant(conventions.std, image.device)[:, None, None]
    pixels = ((pixels - mean) / std)[None]
    return F.interpolate(
        pixels, size=size, mode="bilinear", align_corners=False, antialias=conventions.antialias
    )[0]


def choose_sizes(min_sizes: tuple[int, ...], image_ids: Tensor, key: int, training: bool) -> list[int]:
    """The short side of each picture: drawn from `min_sizes` while training, the last at test time."""
    if not training or len(min_sizes) == 1:
        return [min_sizes[-1]] * len(image_ids)
    draw = uniform(fold(key, image_ids.cpu(), 3), 1)[:, 0]  # (B,)
    return [min_sizes[i] for i in (draw * len(min_sizes)).long().tolist()]


def make_batch(
    images: list[Tensor],
    image_ids: Tensor,
    short_sides: list[int],
    max_size: int,
    divisor: int,
    conventions: Conventions,
    training: bool = False,
) -> Batch:
    """Resize, normalise and pad a list of (3, H, W) pictures to one batch.

    The memory format is channels_last: convolutions on it run up to 1.7 times as fast on a CPU, and
    RoIAlign reads the channels of a cell in one piece. Not so on a CPU where gradients are wanted: that of
    a 3x3 convolution's weights takes three to five times as long in it.
    """
    native = [(image.shape[-2], image.shape[-1]) for image in images]
    shapes = [
        resized_size(h, w, short, max_size, conventions.resize_rounding)
        for (h, w), short in zip(native, short_sides, strict=True)
    ]
    height = math.ceil(max(h for h, _ in shapes) / divisor) * divisor
    width = math.ceil(max(w for _, w in shapes) / divisor) * divisor
    if training:
        height, width = common_size(height, width)
    device = images[0].device
    padded = torch.zeros(len(images), 3, height, width, device=device)  # (B, 3, H, W)
    if device.type != "cpu" or not torch.is_grad_enabled():
        padded = padded.contiguous(memory_format=torch.channels_last)
    for slot, image, shape in zip(padded, images, shapes, strict=True):
        slot[:, : shape[0], : shape[1]] = normalise_and_resize(image, shape, conventions)
    return Batch(padded, to_device(shapes, device), to_device(native, device), native, image_ids.to(device))


def common_size(height: int, width: int) -> tuple[int, int]:
    """The largest height and width of a batch over all processes.

    Padding is part of what a network sees: normalisation counts it and anchors lie on it. Processes that
    pad alike compute what one process would with the whole batch.
    """
    if dist.is_available() and dist.is_initialized():
        size = torch.tensor([height, width])  # on the CPU, for the host has to know it and no GPU has to wait
        dist.all_reduce(size, op=dist.ReduceOp.MAX)
        height, width = size.tolist()
    return height, width


def to_device(rows: list, device: torch.device) -> Tensor:
    """Numbers to an int64 tensor on the device, without the host waiting for it."""
    tensor = torch.tensor(rows, dtype=torch.int64)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def make_targets(targets: list[dict], batch: Batch, masks: bool) -> Targets:
    """Pad the ground truth to one shape and scale the boxes with their pictures."""
    device = batch.images.device
    most = max([len(t["boxes"]) for t in targets] + [1])
    crops = [crops_of(t, masks) for t in targets]
    padded = [c.padded() for c in crops]  # (N, h, w) each
    crop_h, crop_w = (max(p.shape[axis] for p in padded) for axis in (1, 2))
    count = len(targets)
    boxes = torch.zeros(count, most, 4, device=device)
    labels = torch.zeros(count, most, dtype=torch.int64, device=device)
    valid = torch.zeros(count, most, dtype=torch.bool, device=device)
    pixels = torch.zeros(count, most, crop_h, crop_w, dtype=torch.uint8, device=device)
    places = torch.zeros(count, most, 4, dtype=torch.int64, device=device)
    for i, target in enumerate(targets):
        n = len(target["boxes"])
        boxes[i, :n], labels[i, :n], valid[i, :n] = target["boxes"], target["labels"], True
        pixels[i, :n, : padded[i].shape[1], : padded[i].shape[2]] = padded[i]
        places[i, :n] = crops[i].boxes
    scale = (batch.sizes.to(torch.float32) / batch.native_sizes.to(torch.float32)).flip(1).repeat(1, 2)
    return Targets(boxes * scale[:, None], labels, valid, pixels, places)


def crops_of(target: dict, wanted: bool) -> MaskCrops:
    """The masks of a target, which may be given in full size (N, H, W); empty ones if not `wanted`."""
    masks = target["masks"] if wanted else torch.zeros(len(target["boxes"]), 0, 0)
    return masks if isinstance(masks, MaskCrops) else MaskCrops.from_dense(masks)


def check_images(images: list[Tensor], validate: bool) -> None:
    """Raise ValueError or TypeError for what is no list of pictures.

    Values are looked at on the CPU, and with `validate` on a GPU, where that makes the host wait.
    """
    if (isinstance(images, Tensor) and images.dim() == 3) or not len(images):
        raise ValueError("images: want a list of (3, H, W) tensors, at least one")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"images[{i}]: want a (3, H, W) tensor, got {describe(image)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"images[{i}]: want uint8, or float in 0..1; got {image.dtype}")
        if image.device != images[0].device:
            raise ValueError(f"images[{i}] is on {image.device}, images[0] on {images[0].device}")
        if image.is_floating_point() and (validate or image.device.type == "cpu"):
            check_range(image, i)


def check_range(image: Tensor, i: int) -> None:
    """A float picture must be finite and, but for what interpolation overshoots, within 0..1."""
    low, high = (float(x) for x in image.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"images[{i}]: holds NaN or Inf")
    if low < -0.5 or high > 1.5:
        raise ValueError(
            f"images[{i}]: holds {low:.4g} to {high:.4g}; want float in 0..1, or uint8. The model itself "
            "subtracts the mean and divides by the deviation"
        )


def describe(value: object) -> str:
    """Type and shape for an error message."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def check_targets(
    targets: list[dict], images: list[Tensor], num_classes: int, masks: bool, validate: bool
) -> None:
    """Raise ValueError for targets that would train nonsense, naming picture and object.

    Values are looked at on the CPU, and with `validate` on a GPU, where that makes the host wait.
    """
    if isinstance(targets, dict):
        raise TypeError("targets: want a list of dicts, one a picture; got one dict")
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} images but {len(targets)} targets")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        for name in ["boxes", "labels", "masks"] if masks else ["boxes", "labels"]:
            if name not in target:
                raise ValueError(f"targets[{i}] has no {name!r}; it has {sorted(target)}")
        boxes, labels = target["boxes"], target["labels"]
        is_box = isinstance(boxes, Tensor) and boxes.dim() == 2 and boxes.shape[1] == 4
        if not is_box or not boxes.is_floating_point():
            raise ValueError(f"targets[{i}]['boxes']: want a float tensor (N, 4), got {describe(boxes)}")
        shape = (len(boxes),)
        if not isinstance(labels, Tensor) or labels.shape != shape or labels.dtype != torch.int64:
            raise ValueError(f"targets[{i}]['labels']: want an int64 tensor {shape}, got {describe(labels)}")
        if masks:
            check_masks(target["masks"], len(boxes), image, i)
        if validate or boxes.device.type == "cpu":
            check_values(boxes, labels, num_classes, i)


def check_masks(masks: Tensor | MaskCrops, count: int, image: Tensor, i: int) -> None:
    """Masks must be as many as the boxes and, in full size, as large as the picture."""
    wanted = (count, *image.shape[1:])
    if isinstance(masks, MaskCrops):
        if len(masks.boxes) != count:
            raise ValueError(f"targets[{i}]['masks']: want {count}, one a box; got {len(masks.boxes)}")
    elif not isinstance(masks, Tensor) or tuple(masks.shape) != wanted:
        raise ValueError(
            f"targets[{i}]['masks']: want a tensor {wanted}, one a box, as large as the picture; "
            f"got {describe(masks)}"
        )


def check_values(boxes: Tensor, labels: Tensor, num_classes: int, i: int) -> None:
    """Boxes must be finite and have a positive size; labels must be classes, not background."""
    bad = ~(boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    if bool(bad.any()):
        n = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"targets[{i}]['boxes'][{n}] = {boxes[n].tolist()}: want x1 < x2 and y1 < y2, finite; "
            "boxes are corners (x1, y1, x2, y2), not (x, y, width, height)"
        )
    wrong = (labels < 1) | (labels >= num_classes)
    if bool(wrong.any()):
        n = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"targets[{i}]['labels'][{n}] = {int(labels[n])}: want 1..{num_classes - 1}; 0 is the background"
        )
