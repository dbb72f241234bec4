"""RoIPool, RoIWarp, RoIAlign: crops of equal size out of a map or a pyramid, one for each region.

Read loops.py first: it says what each operation is. The other files compute the same, fast.
"""

from minimrcnn.roi_ops.align import roi_align
from minimrcnn.roi_ops.loops import roi_align_loop, roi_pool_loop, roi_warp_loop
from minimrcnn.roi_ops.named import operation
from minimrcnn.roi_ops.pool import roi_pool
from minimrcnn.roi_ops.pyramid import assign_levels, pyramid_roi_align
from minimrcnn.roi_ops.rois import as_rois
from minimrcnn.roi_ops.sampling import sample_points
from minimrcnn.roi_ops.warp import roi_warp

__all__ = [
    "as_rois",
    "assign_levels",
    "operation",
    "pyramid_roi_align",
    "roi_align",
    "roi_align_loop",
    "roi_pool",
    "roi_pool_loop",
    "roi_warp",
    "roi_warp_loop",
    "sample_points",
]
