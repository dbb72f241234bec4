"""The door of the RoI operations: both forms of RoIs in, and every error before anything is computed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

REDUCE = ("average", "max")  # of a bin's sampling points: the paper tries both (Table 2c)


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """`name` if it is one of `known`; else a ValueError that names the nearest and all of them."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no {what} {name!r}: {hint}there are {', '.join(known)}")


def as_rois(rois: Tensor | Sequence[Tensor]) -> Tensor:
    """RoIs in one tensor: (R, 5), the picture's index in the batch and x1, y1, x2, y2.

    Args:
        rois: that tensor, or a list of boxes (K, 4), one tensor a picture, as torchvision takes it too.
            Boxes in pixels of the resized picture.

    Raises:
        ValueError: neither of the two.
    """
    if isinstance(rois, Tensor):
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(
                f"rois: shape {tuple(rois.shape)}; want (R, 5), the picture's index and x1, y1, x2, y2, "
                "or a list of boxes (K, 4), one tensor a picture"
            )
        return rois
    if not isinstance(rois, Sequence) or not len(rois) or not all(isinstance(b, Tensor) for b in rois):
        raise ValueError(
            f"rois: {rois!r}; want a tensor (R, 5), or a list of boxes (K, 4), one tensor a picture"
        )
    for i, boxes in enumerate(rois):
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"rois[{i}]: shape {tuple(boxes.shape)}; want (K, 4), x1, y1, x2, y2")
    boxes = torch.cat(list(rois))
    index = [torch.full_like(b[:, :1], i) for i, b in enumerate(rois)]  # (K, 1) each
    return torch.cat([torch.cat(index), boxes], dim=1)


def at_least_float32(numbers: Tensor) -> Tensor:
    """Positions are worked out in float32 or finer: bfloat16 has whole pixels up to 256 only."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def size_pair(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a crop in bins, from one number or two; ValueError if it has no bin."""
    pair = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"output_size: {output_size!r}; want a whole number of bins above 0, or two of them")
    return pair


def check_features(features: Tensor, what: str = "features") -> None:
    """A map (B, C, H, W) of floating point numbers with at least one cell, or a ValueError."""
    if not isinstance(features, Tensor) or features.dim() != 4:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{what}: {shape}; want a tensor (B, C, H, W)")
    if not features.is_floating_point():
        raise ValueError(f"{what}: dtype {features.dtype}; want floating point numbers, so call .float()")
    if 0 in features.shape[2:]:
        raise ValueError(f"{what}: a map of {features.shape[2]} x {features.shape[3]} cells has no cell")
    if features[:, :1].numel() >= 2**31:
        raise ValueError(
            f"{what}: shape {tuple(features.shape)}; cells are counted in int32: split the batch"
        )


def check_boxes(boxes: Tensor, batch: Tensor, features: Tensor) -> None:
    """RoIs that fit a map: floating point, on its device, finite, and of pictures that there are.

    Args:
        boxes: (R, 4); batch: (R,), any dtype. Their values are looked at on the CPU alone: on a GPU the
            host would have to wait for them.

    Raises:
        ValueError: says which RoI is wrong.
    """
    if not boxes.is_floating_point():
        raise ValueError(f"rois: dtype {boxes.dtype}; want floating point numbers, so call .float()")
    for name, tensor in (("rois", boxes), ("batch", batch)):
        if tensor.device != features.device:
            raise ValueError(
                f"{name}: on {tensor.device}, the features on {features.device}; move one of them with .to"
            )
    if boxes.device.type != "cpu" or torch.compiler.is_compiling() or not len(boxes):
        return
    if not all(math.isfinite(n) for n in boxes.detach().aminmax()):
        row = int((~boxes.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(f"rois[{row}]: {boxes[row].tolist()}: every corner must be a finite number")
    low, high = (float(n) for n in batch.aminmax())
    if not (low >= 0 and high < len(features)):  # NaN fails too
        row = int((~((batch >= 0) & (batch < len(features)))).nonzero()[0])
        raise ValueError(
            f"rois[{row}]: picture {batch[row].item():g}, but the batch has pictures 0 to {len(features) - 1}"
        )


def check_rois(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
) -> tuple[Tensor, tuple[int, int]]:
    """All that can be wrong in a call of `roi_pool`, `roi_warp` or `roi_align`.

    Returns:
        The RoIs as one tensor (R, 5), and the output's (height, width) in bins.

    Raises:
        ValueError: what was wrong, where, and what to do.
    """
    check_features(features)
    if isinstance(rois, Sequence) and len(rois) != len(features):
        raise ValueError(f"rois: boxes of {len(rois)} pictures, but the batch has {len(features)}")
    rois = as_rois(rois)
    pair = size_pair(output_size)
    if not (math.isfinite(spatial_scale) and spatial_scale > 0):
        raise ValueError(f"spatial_scale: {spatial_scale}; want cells a pixel, 1/16 for a stride of 16")
    check_sampling_ratio(sampling_ratio)
    check_boxes(rois[:, 1:], rois[:, 0], features)
    return rois, pair


def check_sampling_ratio(sampling_ratio: int) -> None:
    """A whole number; 0 and below mean the adaptive ratio, as they do in torchvision."""
    if not isinstance(sampling_ratio, int):
        raise ValueError(
            f"sampling_ratio: {sampling_ratio!r}; want the points along a bin's side, or 0 for adaptive"
        )
