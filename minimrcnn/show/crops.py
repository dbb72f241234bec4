"""RoIPool, RoIWarp and RoIAlign beside one another on one RoI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minimrcnn.show import panels
from minimrcnn.show.notebook import NotebookFigure
from minimrcnn.show.one_bin import one_bin
from minimrcnn.show.panels import COLOURS, INK, LARGE, NORMAL, QUIET
from minimrcnn.show.reading import TITLES
from minimrcnn.show.render import on_figure
from minimrcnn.show.scene import OPERATIONS, Scene, as_source, make_scene, words
from minimrcnn.show.sheet import Array, Box, Sheet, View

# Pixels. 900 is the width of a notebook's cell on a small screen.
WIDTH, HEIGHT, EDGE, GAP = 900, 756, 12, 18
TOP, READING, CROPS = (74, 186), (332, 212), (572, 132)  # the rows: where each begins, and how tall it is


def compare_crops(
    picture_or_map: Tensor | Array,
    roi: Sequence[float],
    ops: Sequence[str] = OPERATIONS,
    output_size: int | tuple[int, int] = 7,
    stride: int = 16,
    *,
    sampling_ratio: int = 2,
    aligned: bool = True,
    detail: str | None = None,
    bin: tuple[int, int] = (0, 0),
    channel: int = 0,
) -> NotebookFigure:
    """One figure in which a person sees what rounding does to a RoI, and what it costs.

    The picture with the grid of cells and the RoI; one bin enlarged, with a sampling point's neighbours and
    weights; the error in x while the RoI is pushed by fractions of a cell; for each operation what it reads
    (its RoI, bins and sampling points over the cells), its crop and its difference to the last operation's;
    and each operation's misalignment in pixels of the picture (see `alignment_error`).

    Args:
        picture_or_map: (3, H, W) uint8 or float 0..1, a picture: its map is the mean brightness of
            stride x stride pixels a cell. Or (h, w) or (C, h, w), a feature map.
        roi: (x1, y1, x2, y2), pixels of the picture, x to the right and y down from its upper left corner.
        ops: which of "roi_pool", "roi_warp", "roi_align", from left to right.
        output_size: bins, of a side or (height, width). stride: pixels a cell.
        sampling_ratio: sampling points along each side of a bin; 0 takes as many as it has cells.
        aligned: of RoIAlign; False reads half a cell too far right and down, as the first ones did.
        detail: the operation whose bin is enlarged, the last one by default. bin: its row and column.
        channel: of a feature map.

    Returns:
        A matplotlib figure, 900 pixels wide; a notebook shows it as the value of a cell.

    Raises:
        ValueError: an unknown operation (with the nearest right name), a RoI that is not finite or inside
            out, no bins, no stride, a bin or a channel that there is none of, a shape that is neither.
    """
    source = as_source(picture_or_map, stride, channel)
    return figure_of(make_scene(source, roi, ops, output_size, sampling_ratio, aligned, detail, bin))


def figure_of(scene: Scene) -> NotebookFigure:
    """The scene as a matplotlib figure."""
    figure = NotebookFigure(WIDTH, HEIGHT, scene.summary, words(scene))
    on_figure(draw(scene).sheet, figure)
    return figure


@dataclass(frozen=True)
class Drawing:
    """The whole comparison, and what a mouse needs to know of it.

    Attributes:
        pictures: the views that show the RoI in pixels of the picture.
        bins: the views of crops, which count bins.
    """

    sheet: Sheet
    pictures: list[View]
    bins: list[View]


def draw(scene: Scene) -> Drawing:
    """All panels in their places."""
    sheet = Sheet(WIDTH, HEIGHT)
    _heading(sheet, scene)
    first, second, third = _row(3, *TOP)
    pictures, bins = [panels.overview(sheet, first, scene)], []
    for i, line in enumerate(one_bin(sheet, second, scene)):
        at = second.top + second.height + 16 + 16 * i
        sheet.add_words(second.left, at, line, NORMAL, INK, name="arithmetic")
    panels.curve(sheet, Box(third.left + 22, third.top, third.width - 28, third.height), scene)
    side = CROPS[1]
    for place, below, name in zip(
        _row(len(scene.ops), *READING), _row(len(scene.ops), *CROPS), scene.ops, strict=True
    ):
        pictures.append(panels.reading(sheet, place, scene, name))
        bins.append(panels.crop(sheet, Box(below.left, below.top, side, side), scene, name))
        beside = below.left + side + 9
        if name != scene.ops[-1]:
            panels.difference(sheet, Box(beside, below.top, side, side), scene, name)
        elif len(scene.ops) > 1:
            panels.colour_bar(sheet, Box(beside, below.top, 14, side), scene)
        text = f"{TITLES[name]} {scene.errors[name]}"
        sheet.add_words(below.left, HEIGHT - 12, text, NORMAL, COLOURS[name], name=name)
    label = (
        "Misalignment in pixels of the picture: mean over the bins (+: right, down), and the bin farthest off"
    )
    sheet.add_words(EDGE, HEIGHT - 32, label, NORMAL, QUIET)
    return Drawing(sheet, pictures, bins)


def _row(count: int, top: int, height: int) -> list[Box]:
    """Places beside one another."""
    width = (WIDTH - 2 * EDGE - (count - 1) * GAP) / count
    return [Box(EDGE + i * (width + GAP), top, width, height) for i in range(count)]


def _heading(sheet: Sheet, scene: Scene) -> None:
    s = scene.stride
    x1, y1, x2, y2 = scene.roi
    text = f"RoI ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) px"
    cells = f"= ({x1 / s:.2f}, {y1 / s:.2f}) to ({x2 / s:.2f}, {y2 / s:.2f}) cells of {s} px"
    sheet.add_words(EDGE, 20, f"{text}  {cells}", LARGE, INK, bold=True)
    key = "dashed: the RoI as asked for; coloured: what an operation reads, its bins and its sampling points"
    sheet.add_words(EDGE, 40, key, NORMAL, QUIET)
