"""Pictures: of detections, of a training run, of ground truth beside prediction, of crops and their RoI.

Everything is drawn on matplotlib's Agg canvas through its objects, never through pyplot: no window, no
global figure, and nothing changed for the notebook or the program that calls.
"""

from __future__ import annotations

from minimrcnn.show.alignment import AlignmentError, alignment_curve, alignment_error
from minimrcnn.show.attempt import attempt, box_outlines
from minimrcnn.show.crops import compare_crops
from minimrcnn.show.curves import save_curves
from minimrcnn.show.explorer import RoIExplorer
from minimrcnn.show.gallery import Row, save_gallery
from minimrcnn.show.instances import Instances, draw_instances, overlay, save_overlay
from minimrcnn.show.source import show_source

__all__ = [
    "AlignmentError",
    "Instances",
    "RoIExplorer",
    "Row",
    "alignment_curve",
    "alignment_error",
    "attempt",
    "box_outlines",
    "compare_crops",
    "draw_instances",
    "overlay",
    "save_curves",
    "save_gallery",
    "save_overlay",
    "show_source",
]
