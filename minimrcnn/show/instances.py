"""Objects drawn into their picture: mask, outline, box and a label that can be read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor

from minimrcnn.errors import UserError

# Okabe and Ito (2008), without its black, and with the grey that they left for "other": told apart with
# any of the usual colour visions. The order puts neighbours in the list far apart.
PALETTE = ("#E69F00", "#56B4E9", "#D55E00", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#BBBBBB")
FILL = 0.45  # opacity of a mask
CROWD = 12  # with more objects than this, one that is smaller than its label goes without
Array = np.ndarray


@dataclass(frozen=True)
class Instances:
    """The objects of one picture."""

    boxes: Array | Tensor  # (N, 4) xyxy, pixels of the picture
    labels: Sequence[int] | Array | Tensor  # (N,) 1..len(names)
    masks: Sequence[Array] | Array | Tensor | None  # N masks (H, W) or (1, H, W), inside above .5
    scores: Sequence[float] | Array | Tensor | None  # (N,), None for ground truth


def colours(labels: Sequence[int], classes: int) -> list[tuple[float, float, float]]:
    """A colour for each object, RGB 0..1: by class while the palette lasts, else by its place in the list.

    With one class the classes say nothing, and touching objects must be told apart; with 80 they repeat.
    """
    by_class = 2 <= classes <= len(PALETTE)
    keys = [label - 1 for label in labels] if by_class else range(len(labels))
    return [to_rgb(PALETTE[key % len(PALETTE)]) for key in keys]


def draw_instances(
    axes: Axes,
    picture: Array | Tensor,
    boxes: Array | Tensor,
    labels: Sequence[int] | Array | Tensor,
    masks: Sequence[Array] | Array | Tensor | None,
    scores: Sequence[float] | Array | Tensor | None,
    names: Sequence[str],
    *,
    font_size: float = 7.0,
) -> None:
    """Draw a picture and its objects; earlier objects (by score: better ones) lie on top.

    picture: (3, H, W) uint8, or float 0..1. boxes: (N, 4) xyxy in its pixels. labels: (N,), 1 is names[0].
    masks: N of (H, W) or (1, H, W), a pixel counts above .5; None draws the boxes alone. scores: (N,) or
    None. font_size: points. A label that would hide another one is left out.
    """
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    labels = [int(label) for label in labels]
    paint = colours(labels, len(names))
    layers = [np.asarray(mask).squeeze() > 0.5 for mask in masks] if masks is not None else []
    axes.imshow(_filled(_rgb(picture), layers, paint), interpolation="nearest")
    axes.set_axis_off()
    height, width = picture.shape[-2:]
    limits = (-0.5, width - 0.5), (height - 0.5, -0.5)
    axes.add_collection(_outlines(layers, paint), autolim=False)
    for (x1, y1, x2, y2), colour in zip(boxes, paint, strict=True):
        style = {"edgecolor": colour, "linewidth": 0.6 if layers else 1.2, "alpha": 0.8}
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style))
    axes.set(xlim=limits[0], ylim=limits[1])
    _label(axes, boxes, _texts(labels, scores, names), paint, font_size)


def _rgb(picture: Array | Tensor) -> Array:
    """(3, H, W) uint8 or float 0..1 to (H, W, 3) float 0..1."""
    image = np.asarray(picture).transpose(1, 2, 0)
    return image / 255 if image.dtype == np.uint8 else np.clip(image, 0, 1)


def _filled(image: Array, masks: list[Array], paint: list[tuple[float, float, float]]) -> Array:
    """The picture with a colour laid over each mask; where masks overlap the first one shows."""
    owner = np.full(image.shape[:2], -1)
    for i in reversed(range(len(masks))):
        owner[masks[i]] = i
    inside = owner >= 0
    image = image.astype(float)
    image[inside] = (1 - FILL) * image[inside] + FILL * np.array(paint or [(0, 0, 0)])[owner[inside]]
    return image


def _outlines(masks: list[Array], paint: list[tuple[float, float, float]]) -> LineCollection:
    """The border of each mask, its holes' too, over a wider dark line that sets it off from any ground."""
    lines, inks, widths = [], [], []
    for mask, colour in zip(masks[::-1], paint[: len(masks)][::-1], strict=True):
        border = _border(mask)
        lines += border * 2
        inks += [(0, 0, 0, 0.55)] * len(border) + [(*colour, 1.0)] * len(border)
        widths += [1.8] * len(border) + [1.1] * len(border)
    return LineCollection(lines, colors=inks, linewidths=widths, capstyle="round")


def _border(mask: Array) -> list[Array]:
    """Closed lines (V, 2), x and y, half way between the pixels of a mask (H, W) bool and the others."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(float)
    # Not axes.contour: a set of its own for each mask takes ten times as long.
    corner = np.array((left - 1, top - 1))
    return [line + corner for line in contour_generator(z=crop).lines(0.5)]


# ---------------------------------------------------------------- labels


def _texts(labels: list[int], scores: Sequence[float] | None, names: Sequence[str]) -> list[str]:
    """`key .97`; with a single class the score alone, and nothing where there is no score either."""
    shown = [names[label - 1] if len(names) > 1 else "" for label in labels]
    if scores is None:
        return shown
    numbers = [f"{float(score):.2f}".removeprefix("0") for score in scores]
    return [f"{name} {number}".strip() for name, number in zip(shown, numbers, strict=True)]


def _label(
    axes: Axes, boxes: Array, texts: list[str], paint: list[tuple[float, float, float]], font_size: float
) -> None:
    """Put each text at its box: inside the picture, and clear of the labels before it."""
    axes.apply_aspect()  # otherwise done when drawing: too late to know how many pixels a letter takes
    to_canvas = axes.transData  # from here on y grows upwards
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    for (x1, y1, x2, y2), text, colour in zip(boxes, texts, paint, strict=True):
        if not text:
            continue
        artist = _tag(axes, text, colour, font_size)
        artist.update_bbox_position_size(renderer)
        ground = artist.get_bbox_patch().get_window_extent(renderer)
        (left, top), (right, bottom) = to_canvas.transform([(x1 - 0.5, y1 - 0.5), (x2 - 0.5, y2 - 0.5)])
        hides_more = ground.width * ground.height > (right - left) * (top - bottom)
        places = _places((left, bottom, right, top), ground.width, ground.height, frame)
        free = [place for place in places if not any(place.overlaps(other.padded(-1)) for other in taken)]
        if not free or (len(boxes) > CROWD and hides_more):
            artist.remove()
            continue
        taken.append(free[0])
        # The text stands at the data's origin: move it by as much as its ground has to move.
        moved = to_canvas.transform((0, 0)) + (free[0].min - ground.min)
        artist.set_position(to_canvas.inverted().transform(moved))


def _places(box: tuple[float, float, float, float], w: float, h: float, frame: Bbox) -> list[Bbox]:
    """Where a label of w x h may stand at a box, the best place first, each pushed into the frame."""
    left, bottom, right, top = box
    corners = [
        (left, top),  # on the box
        (left, top - h),  # in its corners
        (right - w, top - h),
        (left, bottom - h),  # under it
        (left, bottom),
        (right - w, bottom),
    ]
    inside = [
        (min(max(x, frame.x0), max(frame.x1 - w, frame.x0)), max(min(y, frame.y1 - h), frame.y0))
        for x, y in corners
    ]
    return [Bbox.from_bounds(x, y, w, h) for x, y in inside]


def _tag(axes: Axes, text: str, colour: tuple[float, float, float], font_size: float) -> Text:
    """A text in black or white, whichever is easier to read, on a ground of the object's colour."""
    luminance = float(np.dot(colour, (0.299, 0.587, 0.114)))
    ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
    ink = "black" if luminance > 0.45 else "white"
    return axes.text(0, 0, text, fontsize=font_size, color=ink, bbox=ground, clip_on=True)


# ---------------------------------------------------------------- a picture of its own


def overlay(picture: Array | Tensor, names: Sequence[str], objects: Instances) -> Figure:
    """A figure of the picture alone, without a margin; between 800 and 1600 pixels on its long side.

    Below that the labels of a small picture would cover it; above, those of a large one would vanish.
    """
    height, width = picture.shape[-2:]
    longest = max(height, width)
    scale = min(max(longest, 800), 1600) / longest
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_instances(
        axes, picture, objects.boxes, objects.labels, objects.masks, objects.scores, names, font_size=9
    )
    return figure


def save_overlay(path: Path, picture: Array | Tensor, names: Sequence[str], objects: Instances) -> None:
    """Write `overlay` as a PNG. Raises UserError if the file cannot be written."""
    save_figure(overlay(picture, names, objects), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it: the file is the old one or the new one, whole.

    Raises UserError if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=figure.dpi)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = error.strerror or error
        raise UserError(f"cannot write {path}: {why}. Make room or choose another place.") from error
