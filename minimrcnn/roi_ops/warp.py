"""RoIWarp: RoIAlign's bilinear sampling on RoIPool's rounded RoI.

Mask R-CNN, section 3 and Table 2c, after MNC (Dai et al. 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minimrcnn.roi_ops.align import sample_map
from minimrcnn.roi_ops.pool import rounded_rois
from minimrcnn.roi_ops.rois import REDUCE, check_rois, one_of


def roi_warp(
    features: Tensor,
    rois: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduce: str = "average",
) -> Tensor:
    """RoIWarp: the first rounding of RoIPool, then what RoIAlign does.

    The RoI covers the cells round(x1 * spatial_scale) to round(x2 * spatial_scale), both included, at least
    one. Cell i has its value at coordinate i, so the RoI reaches half a cell farther to both sides: it is
    cut into bins from x1 - .5 on, over x2 - x1 + 1 cells, and nothing else is rounded.

    Args:
        features, rois, output_size, spatial_scale, sampling_ratio, reduce: as in `roi_align`.

    Returns:
        (R, C, height, width), in the dtype of the features; differentiable in them.

    Raises:
        ValueError: bad input, said before anything is computed (rois.py).
    """
    one_of(reduce, REDUCE, "reduce")
    rois, pair = check_rois(features, rois, output_size, spatial_scale, sampling_ratio)
    first, length = rounded_rois(rois, spatial_scale)
    batch = rois[:, 0].to(torch.int64)
    return sample_map(features, first - 0.5, length, batch, pair, sampling_ratio, reduce)
