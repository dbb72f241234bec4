"""Ground truth beside prediction, for pictures that a rule chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from minimrcnn.show.instances import PALETTE, Instances, draw_instances, save_figure

WIDTH = 11.0  # inches: 1100 pixels, a little more than a notebook shows
SIDE = 2.6  # inches, of the square that each picture is fitted into
HEADER, LINE = 0.6, 0.28  # inches: above the pictures; a picture's title


@dataclass(frozen=True)
class Row:
    """One picture of the gallery."""

    title: str
    picture: np.ndarray | Tensor  # (3, H, W) uint8, or float 0..1
    truth: Instances
    prediction: Instances


def save_gallery(path: Path, rows: Sequence[Row], names: Sequence[str], title: str) -> None:
    """Write the gallery as a PNG: two pictures a line, each as ground truth and as prediction.

    names: of the classes, label 1 first. title: what is seen, and by which rule the pictures were chosen.
    Raises UserError if the file cannot be written.
    """
    save_figure(gallery(rows, names, title), path)


def gallery(rows: Sequence[Row], names: Sequence[str], title: str) -> Figure:
    """The figure of `save_gallery`."""
    key = 0.3 if 2 <= len(names) <= len(PALETTE) else 0.0
    lines = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    heights = [SIDE * min(max(_tallness(row) for row in line), 1.0) for line in lines]
    height = HEADER + key + sum(heights) + LINE * len(lines) + 0.1
    figure = Figure(figsize=(WIDTH, height), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.14 / height, title, ha="center", va="top", fontsize=11)
    if key:
        patches = [Patch(color=colour, label=name) for colour, name in zip(PALETTE, names, strict=False)]
        place = {"loc": "center", "bbox_to_anchor": (0.5, 1 - (HEADER + 0.1) / height)}
        figure.legend(patches, names, ncols=len(names), frameon=False, **place)
    bottom = height - HEADER - key
    for line, line_height in zip(lines, heights, strict=True):
        bottom -= line_height + LINE
        for i, row in enumerate(line):
            left = 0.1 + i * (WIDTH / 2)
            for what, objects in ((f"{row.title}: truth", row.truth), ("prediction", row.prediction)):
                axes = figure.add_axes((left / WIDTH, bottom / height, SIDE / WIDTH, line_height / height))
                axes.set_anchor("N")
                draw_instances(axes, row.picture, **vars(objects), names=names)
                count = len(objects.boxes)
                text = f"{what}, {count} object{'' if count == 1 else 's'}"
                axes.set_title(text, fontsize=9, pad=3, loc="left", y=1.0)
                left += SIDE + 0.08
    return figure


def _tallness(row: Row) -> float:
    height, width = row.picture.shape[-2:]
    return height / width
