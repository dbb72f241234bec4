"""The door of `roi_pool`, `roi_warp` and `roi_align`: both forms of RoIs in, and every error at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minimrcnn.roi_ops.checks import check_boxes, check_features, check_sampling_ratio, size_pair

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
