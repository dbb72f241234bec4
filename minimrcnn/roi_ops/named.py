"""The operations by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from minimrcnn.roi_ops.align import roi_align
from minimrcnn.roi_ops.loops import roi_align_loop, roi_pool_loop, roi_warp_loop
from minimrcnn.roi_ops.pool import roi_pool
from minimrcnn.roi_ops.rois import one_of
from minimrcnn.roi_ops.warp import roi_warp

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "roi_pool": roi_pool,
    "roi_warp": roi_warp,
    "roi_align": roi_align,
    "roi_pool_loop": roi_pool_loop,
    "roi_warp_loop": roi_warp_loop,
    "roi_align_loop": roi_align_loop,
}


def operation(name: str) -> Callable[..., Tensor]:
    """The function of that name: "roi_pool", "roi_warp", "roi_align", or one of them with "_loop" behind.

    All take (features, rois, output_size, spatial_scale); see there for the rest.

    Raises:
        ValueError: there is none of that name; says which is nearest.
    """
    return OPERATIONS[one_of(name, OPERATIONS, "operation")]
