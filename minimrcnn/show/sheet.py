"""A drawing as a list of marks: lines, dots, areas, rasters and words, in pixels of a sheet.

One drawing, two ways out of it, both in `render.py`: a matplotlib figure to keep, and an SVG that a browser
draws while the mouse moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Dash = tuple[float, float] | None  # pixels drawn, pixels left out


@dataclass(frozen=True)
class Box:
    """A place on the sheet, pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Lines:
    """Polylines."""

    places: Array  # (M, N, 2)
    colour: str
    width: float
    dash: Dash = None


@dataclass(frozen=True)
class Dots:
    """Discs."""

    places: Array  # (N, 2)
    colour: str
    width: float  # across


@dataclass(frozen=True)
class Area:
    """A filled rectangle."""

    box: Box
    colour: str
    alpha: float


@dataclass(frozen=True, eq=False)
class Raster:
    """A little picture. smooth: a photo; otherwise its pixels are to be seen as squares."""

    pixels: Array  # (H, W, 3) uint8
    smooth: bool = False


@dataclass(frozen=True)
class Picture:
    """A raster, stretched over a place."""

    box: Box
    raster: Raster


@dataclass(frozen=True)
class Words:
    """A line of text; (x, y) is where its baseline begins, has its middle or ends."""

    x: float
    y: float
    text: str
    colour: str
    size: float
    anchor: str = "start"  # or "middle", "end"
    bold: bool = False
    name: str = ""  # by which a page finds it


Mark = Lines | Dots | Area | Picture | Words


@dataclass
class Sheet:
    """The marks, the lowest first, and in each place the part of the sheet to which it is cut."""

    width: int
    height: int
    marks: list[tuple[Mark, Box | None]] = field(default_factory=list)

    def add(self, mark: Mark, within: Box | None = None) -> None:
        self.marks.append((mark, within))

    def add_words(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        colour: str,
        anchor: str = "start",
        bold: bool = False,
        name: str = "",
    ) -> None:
        """A line of text, see Words."""
        self.add(Words(x, y, text, colour, size, anchor, bold, name))

    def frame(self, box: Box) -> None:
        """A thin grey line around a place."""
        x = np.array([0, 1, 1, 0, 0]) * box.width + box.left
        y = np.array([0, 0, 1, 1, 0]) * box.height + box.top
        self.add(Lines(np.stack([x, y], axis=1)[None], "#AAAAAA", 1.0))


@dataclass(frozen=True)
class View:
    """A place on the sheet with coordinates of its own: of the picture, of bins, of a curve.

    left, top: what is shown in its upper left corner. scale: pixels of the sheet a unit, across and down.
    """

    sheet: Sheet
    box: Box
    left: float
    top: float
    scale: tuple[float, float]

    def place(self, points: Array | Sequence) -> Array:
        """(..., 2) coordinates to (..., 2) pixels of the sheet."""
        return (np.asarray(points, float) - (self.left, self.top)) * self.scale + (
            self.box.left,
            self.box.top,
        )

    def unplace(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the sheet to coordinates."""
        across, down = self.scale
        return self.left + (x - self.box.left) / across, self.top + (y - self.box.top) / down

    def shown(self) -> tuple[float, float, float, float]:
        """The rectangle that is shown: x1, y1, x2, y2."""
        right = self.left + self.box.width / self.scale[0]
        return self.left, self.top, right, self.top + self.box.height / self.scale[1]

    def lines(self, lines: Array | Sequence, colour: str, width: float, dash: Dash = None) -> None:
        """Polylines of equal length, (M, N, 2); width and dash in pixels of the sheet."""
        if len(lines):
            self.sheet.add(Lines(self.place(lines), colour, width, dash), self.box)

    def outline(
        self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dash: Dash = None
    ) -> None:
        self.lines([[(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]], colour, width, dash)

    def dots(self, points: Array, colour: str, width: float) -> None:
        """points: (N, 2)."""
        self.sheet.add(Dots(self.place(points), colour, width), self.box)

    def area(self, x1: float, y1: float, x2: float, y2: float, colour: str, alpha: float = 1.0) -> None:
        self.sheet.add(Area(self._box(x1, y1, x2, y2), colour, alpha), self.box)

    def raster(self, raster: Raster, x1: float, y1: float, x2: float, y2: float) -> None:
        self.sheet.add(Picture(self._box(x1, y1, x2, y2), raster), self.box)

    def _box(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        (left, top), (right, bottom) = self.place([(x1, y1), (x2, y2)])
        return Box(left, top, right - left, bottom - top)


def fit(sheet: Sheet, box: Box, left: float, top: float, width: float, height: float) -> View:
    """A view of a rectangle at equal scales, in the middle, and of what is around it where there is room."""
    scale = min(box.width / width, box.height / height)
    x, y = left - (box.width / scale - width) / 2, top - (box.height / scale - height) / 2
    return View(sheet, box, x, y, (scale, scale))
