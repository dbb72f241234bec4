"""One bin, enlarged: the arithmetic behind one number of a crop."""

from __future__ import annotations

import numpy as np

from minimrcnn.show.panels import COLOURS, INK, PALE, SMALL, draw_grid, draw_map, hatch_outside, number, title
from minimrcnn.show.reading import TITLES, neighbours
from minimrcnn.show.scene import Scene
from minimrcnn.show.sheet import Area, Array, Box, Sheet, View, fit


def one_bin(sheet: Sheet, box: Box, scene: Scene) -> list[str]:
    """The bin's first sampling point with its four neighbours and weights; of RoIPool, the cells.

    Returns the lines that say it in words.
    """
    name, s = scene.detail, scene.stride
    down, across = (axis.bins[i] for axis, i in zip(scene.readings[name], scene.bin, strict=True))
    ys, xs = (axis.points[i] for axis, i in zip(scene.readings[name], scene.bin, strict=True))
    title(sheet, box, f"{TITLES[name]}, bin ({scene.bin[0]}, {scene.bin[1]}) enlarged", COLOURS[name])
    if name == "roi_pool":
        lines = _largest(sheet, box, scene, across / s, down / s)
    elif len(xs) and len(ys):
        lines = _bilinear(sheet, box, scene, xs, ys)
    else:
        _cells(sheet, box, scene, across.mean() / s, down.mean() / s)
        lines = ["a RoI of no size has no sampling points:", "the bin is 0"]
    sheet.frame(box)
    return lines


def _cells(
    sheet: Sheet, box: Box, scene: Scene, x: float, y: float, width: float = 3.6, height: float = 2.4
) -> View:
    """The map around a place, with the bin; all in cells, the first one from 0 to 1."""
    s, name = scene.stride, scene.detail
    view = fit(sheet, box, (x - width / 2) * s, (y - height / 2) * s, width * s, height * s)
    hatch_outside(view, scene)
    draw_map(view, scene, PALE)
    draw_grid(view, scene, 0.8)
    (top, bottom), (left, right) = (
        axis.bins[i] for axis, i in zip(scene.readings[name], scene.bin, strict=True)
    )
    view.area(left, top, right, bottom, COLOURS[name], 0.25)
    view.outline(left, top, right, bottom, COLOURS[name], 1.2)
    return view


def _bilinear(sheet: Sheet, box: Box, scene: Scene, xs: Array, ys: Array) -> list[str]:
    """xs, ys: the bin's sampling points, in cells."""
    s, colour = scene.stride, COLOURS[scene.detail]
    values = scene.source.values
    view = _cells(sheet, box, scene, np.floor(xs[0]) + 1, np.floor(ys[0]) + 1)
    points = (np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2) + 0.5) * s  # the first one first
    total, tags = 0.0, []
    for j, weight_y in neighbours(ys[0], values.shape[0]):
        for i, weight_x in neighbours(xs[0], values.shape[1]):
            weight, cell = weight_y * weight_x, ((i + 0.5) * s, (j + 0.5) * s)
            total += weight * values[j, i]
            view.lines([[points[0], cell]], colour, 0.8 + 4 * weight)
            view.dots([cell], INK, 4)
            # Away from the point, which may lie on the neighbour itself.
            away = -24 if j <= ys[0] else 34
            tags.append((*view.place([cell])[0] + (0, away), f"{weight:.2f} × {number(values[j, i])}"))
    view.dots(points, colour, 8)
    view.dots(points[1:], "#FFFFFF", 5)
    for x, y, text in tags:
        tag(view, x, y, text)
    crop, count = number(scene.crops[scene.detail][scene.bin]), len(points)
    if not tags:
        return [
            "this point lies outside the map and counts as 0;",
            f"the bin is the mean of its {count} points, {crop}",
        ]
    if count == 1:
        return [f"the bin is its only point, the weighted sum {crop}"]
    return [
        f"the point is the weighted sum, {number(total)};",
        f"the bin is the mean of its {count} points, {crop}",
    ]


def _largest(sheet: Sheet, box: Box, scene: Scene, across: Array, down: Array) -> list[str]:
    """across, down: where the bin begins and ends, in cells."""
    (left, right), (top, bottom) = across, down
    width, height = max(right - left + 0.8, 3.6), max(bottom - top + 0.8, 2.4)
    view = _cells(sheet, box, scene, across.mean(), down.mean(), width, height)
    values, s = scene.source.values, scene.stride
    rows = range(max(int(top), 0), min(int(bottom), values.shape[0]))
    columns = range(max(int(left), 0), min(int(right), values.shape[1]))
    if not rows or not columns:
        return ["this bin lies outside the map: it is 0"]
    best = max(((j, i) for j in rows for i in columns), key=lambda place: values[place])
    room = s * view.scale[0] >= 34  # for a number in a cell
    for j in rows:
        for i in columns:
            if room or (j, i) == best:
                x, y = view.place([((i + 0.5) * s, (j + 0.5) * s)])[0]
                tag(view, x, y + 4, number(values[j, i]), bold=(j, i) == best)
    crop, count = number(scene.crops["roi_pool"][scene.bin]), len(rows) * len(columns)
    if count == 1:
        return ["whole cells and no weights:", f"the bin is its only cell, {crop}"]
    return ["whole cells and no weights:", f"the bin is the largest of its {count} cells, {crop}"]


def tag(view: View, x: float, y: float, text: str, bold: bool = False) -> None:
    """Words on white; x, y: pixels of the sheet."""
    width = (0.66 + 0.06 * bold) * SMALL * len(text) + 4
    place = view.box
    x = min(max(x, place.left + width / 2 + 2), place.left + place.width - width / 2 - 2)
    y = min(max(y, place.top + SMALL + 3), place.top + place.height - 5)
    view.sheet.add(Area(Box(x - width / 2, y - SMALL, width, SMALL + 4), "#FFFFFF", 0.85))
    view.sheet.add_words(x, y, text, SMALL, INK, "middle", bold)
