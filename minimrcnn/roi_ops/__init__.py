"""RoIAlign: crops of equal size out of a feature pyramid, one for each region."""

from minimrcnn.roi_ops.align import roi_align, sample_points
from minimrcnn.roi_ops.pyramid import assign_levels, pool_by_level, pyramid_roi_align

__all__ = ["assign_levels", "pool_by_level", "pyramid_roi_align", "roi_align", "sample_points"]
