"""A figure that a notebook shows: as a picture, as a line of text, and as words for who cannot see it."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


class NotebookFigure(Figure):
    """A matplotlib figure that is shown when it is the value of a cell, without pyplot.

    A bare Figure shows itself only once `%matplotlib inline` has told IPython how. This one carries its PNG
    with it, under nbclient too.

    Attributes:
        summary: one line with the numbers, the cell's text output (what nbval compares).
        alt: what the picture shows, in words: the `alt` of the output's metadata, which nbconvert writes
            into the page.
    """

    def __init__(self, width: int, height: int, summary: str, alt: str) -> None:
        """An empty white figure of width x height pixels."""
        super().__init__(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
        FigureCanvasAgg(self)
        self.summary = summary
        self.alt = alt

    def png(self) -> bytes:
        """The figure as a PNG file, pixel for pixel.

        Not savefig: it packs harder, which takes longer than the drawing.
        """
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]  # (H, W, 3) uint8
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=2)
        return file.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        """Jupyter's protocol: the same thing in several forms, and what is known about each."""
        width, height = (round(size * self.dpi) for size in self.get_size_inches())
        picture = base64.b64encode(self.png()).decode()
        about = {"width": width, "height": height, "alt": self.alt}
        return {"text/plain": self.summary, "image/png": picture}, {"image/png": about}
