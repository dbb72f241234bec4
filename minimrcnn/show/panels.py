"""The panels of the crop comparison: each function draws one of them from a Scene into its box."""

from __future__ import annotations

import numpy as np
import torch

from minimrcnn.show.alignment import alignment_curve
from minimrcnn.show.reading import TITLES
from minimrcnn.show.scene import Scene
from minimrcnn.show.sheet import Array, Box, Raster, Sheet, View, fit

# Okabe and Ito (2008): told apart with any of the usual colour visions, and dark enough for lines.
COLOURS = {"roi_pool": "#D55E00", "roi_warp": "#009E73", "roi_align": "#0072B2"}
ENDS = np.array([(0x00, 0x72, 0xB2), (255, 255, 255), (0xD5, 0x5E, 0x00)])  # of differences: -, 0, +
GRID, INK, QUIET = "#808080", "#222222", "#555555"
SMALL, NORMAL, LARGE = 10.5, 12.0, 14.0  # sizes of words in pixels
PALE = 0.35  # how far towards white a map is drawn that has lines over it


def title(sheet: Sheet, box: Box, text: str, colour: str = INK, size: float = NORMAL) -> None:
    """A line over a panel."""
    sheet.add_words(box.left, box.top - 6, text, size, colour)


# ---------------------------------------------------------------- the whole picture


def overview(sheet: Sheet, box: Box, scene: Scene) -> View:
    """The picture with the grid of cells and the RoI that was asked for."""
    height, width = scene.source.pixels
    view = fit(sheet, box, 0, 0, width, height)
    if scene.source.thumbnail is not None:
        view.raster(scene.source.thumbnail, 0, 0, width, height)
    else:
        draw_map(view, scene, 0.0)
    if scene.stride * view.scale[0] >= 5:
        draw_grid(view, scene, 0.5)
    asked(view, scene)
    sheet.frame(box)
    rows, columns = scene.source.cells
    what = (
        f"the picture, {width} x {height} px"
        if scene.source.thumbnail
        else f"the map, {columns} x {rows} cells"
    )
    title(sheet, box, f"{what}; cells of {scene.stride} px")
    return view


def draw_map(view: View, scene: Scene, pale: float) -> None:
    """The map, each cell a square as bright as its value."""
    rows, columns = scene.source.cells
    view.raster(scene.source.grey(pale), 0, 0, columns * scene.stride, rows * scene.stride)


def draw_grid(view: View, scene: Scene, width: float) -> None:
    """The borders of the cells that are in view."""
    s = scene.stride
    (x1, y1, x2, y2), (rows, columns) = view.shown(), scene.source.cells
    first_x, last_x = max(int(x1 // s), 0), min(int(x2 // s) + 1, columns)
    first_y, last_y = max(int(y1 // s), 0), min(int(y2 // s) + 1, rows)
    upright = [[(x * s, first_y * s), (x * s, last_y * s)] for x in range(first_x, last_x + 1)]
    level = [[(first_x * s, y * s), (last_x * s, y * s)] for y in range(first_y, last_y + 1)]
    view.lines(upright + level, GRID, width)


def asked(view: View, scene: Scene) -> None:
    """The RoI as it was asked for: black dashes on white, seen on any ground."""
    view.outline(*scene.roi, "#FFFFFF", 3.2)
    view.outline(*scene.roi, "#000000", 1.6, (5, 3))


def hatch_outside(view: View, scene: Scene) -> None:
    """Slanted lines where there is no map; the map is drawn over them."""
    x1, y1, x2, y2 = view.shown()
    rows, columns = scene.source.cells
    if x1 >= 0 and y1 >= 0 and x2 <= columns * scene.stride and y2 <= rows * scene.stride:
        return
    height, step = y2 - y1, 8 / view.scale[0]
    starts = np.arange(x1 - height, x2, step)
    view.lines([[(x, y2), (x + height, y1)] for x in starts], "#D4D4D4", 1.0)


# ---------------------------------------------------------------- what one operation reads


def reading(sheet: Sheet, box: Box, scene: Scene, name: str) -> View:
    """The cells around the RoI; what the operation makes of it, its bins and its sampling points."""
    down, across = scene.readings[name]
    view = fit(sheet, box, *scene.window)
    s, colour = scene.stride, COLOURS[name]
    hatch_outside(view, scene)
    draw_map(view, scene, PALE)
    if s * view.scale[0] >= 4:
        draw_grid(view, scene, 0.7)
    row, column = scene.bin
    (left, right), (top, bottom) = across.bins[column], down.bins[row]
    view.area(left, top, right, bottom, colour, 0.45)
    if name == "roi_pool":
        _bins_apart(view, across.bins, down.bins, colour, min(2 / view.scale[0], 0.12 * s))
    else:
        _bins_joined(view, across.bins, down.bins, colour)
    (left, right), (top, bottom) = across.extent, down.extent
    view.outline(left, top, right, bottom, colour, 2.6)
    if across.points.size and down.points.size:
        x, y = ((axis.points.ravel() + 0.5) * s for axis in (across, down))
        step = min(abs(right - left) / len(x), abs(bottom - top) / len(y)) * view.scale[0]
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        view.dots(points, colour, float(np.clip(0.4 * step, 0.8, 4.5)))
    asked(view, scene)
    sheet.frame(box)
    title(sheet, box, f"{TITLES[name]}: {_what(scene, name)}", colour)
    return view


def _bins_joined(view: View, across: Array, down: Array, colour: str) -> None:
    """Lines between bins that share their borders."""
    left, right, top, bottom = across[0, 0], across[-1, 1], down[0, 0], down[-1, 1]
    upright = [[(x, top), (x, bottom)] for x in across[1:, 0]]
    view.lines(upright + [[(left, y), (right, y)] for y in down[1:, 0]], colour, 1.0)


def _bins_apart(view: View, across: Array, down: Array, colour: str, inset: float) -> None:
    """Rectangles of bins that may overlap, each a little smaller than it is."""
    smaller = np.array([inset, -inset])
    lines = [
        [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
        for y1, y2 in down + smaller
        for x1, x2 in across + smaller
    ]
    view.lines(lines, colour, 1.0)


def _what(scene: Scene, name: str) -> str:
    """What became of the RoI, in the fewest words."""
    down, across = scene.readings[name]
    (left, right), (top, bottom) = across.extent, down.extent
    if name != "roi_align":
        return f"rounded to {left:g}..{right:g} x {top:g}..{bottom:g} px"
    if scene.aligned:
        return "read as it is, nothing rounded"
    return f"not rounded, half a cell late ({scene.stride / 2:g} px)"


# ---------------------------------------------------------------- error against shift


def curve(sheet: Sheet, box: Box, scene: Scene) -> None:
    """How far each operation is off while the RoI is pushed to the right, by up to two cells."""
    s = scene.stride
    shifts = torch.linspace(0, 2 * s, 129)
    view = View(sheet, box, 0, 1.2 * s, (box.width / (2 * s), -box.height / (1.4 * s)))
    for error in (0, s / 2, s):
        view.lines([[(0, error), (2 * s, error)]], "#E2E2E2", 1.0)
        sheet.add_words(box.left - 5, *view.place([(0, error)])[:, 1] + 4, f"{error:g}", SMALL, QUIET, "end")
    for shift in (0, s / 2, s, 3 * s / 2, 2 * s):
        x = view.place([(shift, 0)])[0, 0]
        sheet.add_words(x, box.top + box.height + 14, f"{shift:g}", SMALL, QUIET, "middle")
    rest = {"output_size": (1, scene.output_size[1]), "stride": s}  # what is above a bin moves nothing in x
    rest |= {"sampling_ratio": scene.sampling_ratio, "aligned": scene.aligned}
    # RoIPool and RoIWarp often lie on one another: the upper line is thin, and dashed.
    styles = {"roi_pool": (4.0, None), "roi_warp": (1.6, (5, 3)), "roi_align": (2.4, None)}
    for name in scene.ops:
        errors = alignment_curve(name, scene.roi, shifts, **rest)
        view.lines(torch.stack([shifts, errors], dim=1)[None], COLOURS[name], *styles[name])
    sheet.frame(box)
    title(sheet, box, "error in x (px) when pushed right (px)")
    key = box.left
    for name in scene.ops:
        sheet.add_words(key, box.top + box.height + 32, TITLES[name], NORMAL, COLOURS[name])
        key += 9 * len(TITLES[name]) + 12


# ---------------------------------------------------------------- crops


def crop(sheet: Sheet, box: Box, scene: Scene, name: str) -> View:
    """What the operation returns, in the greys of the map."""
    rows, columns = scene.output_size
    view = _bins(sheet, box, scene, Raster(scene.source.as_grey(scene.crops[name], 0.0)))
    title(sheet, box, f"crop, {rows} x {columns}", INK, SMALL)
    return view


def difference(sheet: Sheet, box: Box, scene: Scene, name: str) -> None:
    """The crop minus the last operation's: orange where it is brighter, blue where it is darker."""
    reference = scene.ops[-1]
    _bins(sheet, box, scene, Raster(_diverging((scene.crops[name] - scene.crops[reference]) / spread(scene))))
    title(sheet, box, f"minus {TITLES[reference]}", INK, SMALL)


def spread(scene: Scene) -> float:
    """The largest difference of any crop from the last operation's: the ends of the colours."""
    reference = scene.crops[scene.ops[-1]]
    return max(*(float(np.abs(crop - reference).max()) for crop in scene.crops.values()), 1e-6)


def _diverging(values: Array) -> Array:
    """(H, W) -1..1 to (H, W, 3) uint8: blue, white, orange."""
    amount = np.abs(values)[..., None]
    end = np.where(values[..., None] < 0, ENDS[0], ENDS[2])
    return np.rint(ENDS[1] + amount * (end - ENDS[1])).astype(np.uint8)


def _bins(sheet: Sheet, box: Box, scene: Scene, raster: Raster) -> View:
    """A raster of bins, with the one that is enlarged marked; the view counts bins."""
    rows, columns = scene.output_size
    view = fit(sheet, box, 0, 0, columns, rows)
    view.raster(raster, 0, 0, columns, rows)
    row, column = scene.bin
    view.outline(column, row, column + 1, row + 1, "#FFFFFF", 3.6)
    view.outline(column, row, column + 1, row + 1, COLOURS[scene.detail], 2.0)
    sheet.frame(box)
    return view


def colour_bar(sheet: Sheet, box: Box, scene: Scene) -> None:
    """What the colours of the differences mean."""
    view = fit(sheet, box, 0, 0, box.width, box.height)
    bar = Raster(_diverging(np.linspace(1, -1, 66)[:, None]))
    view.raster(bar, 0, 0, box.width, box.height)
    sheet.frame(box)
    title(sheet, box, "difference", INK, SMALL)
    most = number(spread(scene)) if spread(scene) > 1e-6 else "0"
    for text, at in ((f"+{most}", 0.0), ("0", 0.5), (f"-{most}", 1.0)):
        y = box.top + box.height * at + 4
        sheet.add_words(box.left + box.width + 5, y, text, SMALL, QUIET)


def number(value: float) -> str:
    """Three digits, and no more of it than that."""
    return f"{value + 0.0:.0f}" if abs(value) >= 99.5 else f"{value + 0.0:.3g}"
