"""What can be wrong with maps, RoIs and sizes: said before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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


def check_sampling_ratio(sampling_ratio: int) -> None:
    """A whole number; 0 and below mean the adaptive ratio, as they do in torchvision."""
    if not isinstance(sampling_ratio, int):
        raise ValueError(
            f"sampling_ratio: {sampling_ratio!r}; want the points along a bin's side, or 0 for adaptive"
        )
