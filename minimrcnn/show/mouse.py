"""Dragging a RoI: from where the mouse is on the drawing to where the RoI goes."""

from __future__ import annotations

from dataclasses import dataclass

from minimrcnn.show.crops import WIDTH, Drawing
from minimrcnn.show.sheet import View

GRIP = 8  # pixels of the sheet: so near to a side of the RoI, the mouse takes hold of it
Roi = tuple[float, float, float, float]
MOVE = (True, True, True, True)  # which of x1, y1, x2, y2 follow the mouse


@dataclass(frozen=True)
class Grip:
    """What the mouse holds.

    Attributes:
        at: where it took hold, pixels of the sheet. scale: sheet pixels a pixel of the picture.
        roi: as it was then. sides: which of x1, y1, x2, y2 follow the mouse.
    """

    at: tuple[float, float]
    scale: float
    roi: Roi
    sides: tuple[bool, bool, bool, bool]

    def roi_at(self, x: float, y: float) -> Roi:
        """The RoI with the mouse at (x, y), pixels of the sheet: to a tenth of a pixel, never inside out."""
        moved = ((x - self.at[0]) / self.scale, (y - self.at[1]) / self.scale) * 2
        corners = zip(self.roi, moved, self.sides, strict=True)
        x1, y1, x2, y2 = (round(old + by, 1) if follows else old for old, by, follows in corners)
        if self.sides == MOVE:
            return x1, y1, x2, y2
        left, top, right, bottom = self.sides
        x1, y1 = min(x1, x2) if left else x1, min(y1, y2) if top else y1
        return x1, y1, max(x1, x2) if right else x2, max(y1, y2) if bottom else y2


def sheet_position(event: dict) -> tuple[float, float]:
    """Where a mouse event of ipyevents lies, pixels of the sheet, however wide the page shows it."""
    scale = WIDTH / min(event["boundingRectWidth"], WIDTH)
    return event["relativeX"] * scale, event["relativeY"] * scale


def bin_at(drawing: Drawing, x: float, y: float) -> tuple[int, int] | None:
    """Row and column of the bin of a crop under the mouse. It may lie beside the crop: the caller checks."""
    for view in drawing.bins:
        if _inside(view, x, y):
            across, down = view.unplace(x, y)
            return int(down // 1), int(across // 1)
    return None


def grip_at(drawing: Drawing, roi: Roi, x: float, y: float) -> Grip | None:
    """What the mouse takes hold of at (x, y): a side, a corner, all of the RoI, or nothing."""
    for view in drawing.pictures:
        if _inside(view, x, y):
            sides = _sides(roi, *view.unplace(x, y), GRIP / view.scale[0])
            return Grip((x, y), view.scale[0], roi, sides) if sides is not None else None
    return None


def _inside(view: View, x: float, y: float) -> bool:
    box = view.box
    return box.left <= x <= box.left + box.width and box.top <= y <= box.top + box.height


def _sides(roi: Roi, x: float, y: float, near: float) -> tuple[bool, bool, bool, bool] | None:
    """Which sides follow a mouse at (x, y), pixels of the picture."""
    x1, y1, x2, y2 = roi
    if not (x1 - near <= x <= x2 + near and y1 - near <= y <= y2 + near):
        return None
    # Of a RoI too small to have an inside between its sides all of it is moved.
    wide, tall = x2 - x1 > 3 * near, y2 - y1 > 3 * near
    left, right = wide and abs(x - x1) <= near, wide and abs(x - x2) <= near
    top, bottom = tall and abs(y - y1) <= near, tall and abs(y - y2) <= near
    return (left, top, right, bottom) if left or top or right or bottom else MOVE
