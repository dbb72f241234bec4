"""Pictures: of detections, of a training run, of ground truth beside prediction.

Everything is drawn on matplotlib's Agg canvas through its objects, never through pyplot: no window, no
global figure, and nothing changed for the notebook or the program that calls.
"""

from __future__ import annotations

from minimrcnn.show.curves import save_curves
from minimrcnn.show.gallery import Row, save_gallery
from minimrcnn.show.instances import Instances, draw_instances, overlay, save_overlay

__all__ = ["Instances", "Row", "draw_instances", "overlay", "save_curves", "save_gallery", "save_overlay"]
