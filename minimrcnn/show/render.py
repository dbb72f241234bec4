"""A sheet of marks as a matplotlib figure, and as SVG."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from html import escape

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from minimrcnn.show.sheet import Area, Box, Dots, Lines, Mark, Picture, Raster, Sheet, Words

FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"  # the first is matplotlib's


def on_figure(sheet: Sheet, figure: Figure) -> None:
    """Draw the marks on axes that cover the figure and count pixels from its upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for order, (mark, within) in enumerate(sheet.marks):
        artist = _artist(axes, mark, 72 / figure.dpi)
        artist.set_zorder(order)
        if within is not None:
            cut = Rectangle((within.left, within.top), within.width, within.height, transform=axes.transData)
            artist.set_clip_path(cut)
    axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))


def _artist(axes: Axes, mark: Mark, point: float) -> Artist:
    """point: points a pixel."""
    match mark:
        case Lines(places, colour, width, dash):
            style = "solid" if dash is None else (0, [length / width for length in dash])
            lines = LineCollection(places, colors=colour, linewidths=width * point, linestyles=style)
            return axes.add_collection(lines, autolim=False)
        case Dots(places, colour, width):
            size = {"markersize": width * point, "markeredgewidth": 0}
            return axes.plot(*places.T, "o", color=colour, **size)[0]
        case Area(box, colour, alpha):
            place = (box.left, box.top), box.width, box.height
            return axes.add_patch(Rectangle(*place, color=colour, alpha=alpha, linewidth=0))
        case Picture(box, raster):
            extent = (box.left, box.left + box.width, box.top + box.height, box.top)
            how = "antialiased" if raster.smooth else "nearest"
            return axes.imshow(raster.pixels, extent=extent, interpolation=how, aspect="auto")
        case Words():
            side = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
            weight = "bold" if mark.bold else "normal"
            style = {"fontsize": mark.size * point, "fontweight": weight, "color": mark.colour}
            return axes.text(mark.x, mark.y, mark.text, ha=side, **style)


def as_svg(sheet: Sheet, description: str) -> str:
    """The marks as an <svg> element: as wide as what it stands in, and at most as wide as the sheet.

    description: what is to be seen, for who cannot.
    """
    body = []
    current = None
    for mark, within in sheet.marks:  # an element of its own for each run of marks in one place
        if within != current:
            body.append("</svg>" if current is not None else "")
            # A nested <svg> cuts what does not fit; a clipPath's name could be another drawing's, too.
            body.append(f"<svg {_at(within)} viewBox={_view(within)}>" if within is not None else "")
            current = within
        body.append(_element(mark))
    body.append("</svg>" if current is not None else "")
    style = f"display:block;width:100%;max-width:{sheet.width}px;background:white;user-select:none"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width} {sheet.height}" role="img" '
        f'aria-label="{escape(description)}" font-family="{FONT}" style="{style}">{"".join(body)}</svg>'
    )


def _at(box: Box) -> str:
    return f'x="{box.left:.2f}" y="{box.top:.2f}" width="{box.width:.2f}" height="{box.height:.2f}"'


def _view(box: Box) -> str:
    return f'"{box.left:.2f} {box.top:.2f} {box.width:.2f} {box.height:.2f}"'


def _element(mark: Mark) -> str:
    match mark:
        case Lines(places, colour, width, dash):
            path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) for line in places.tolist())
            style = "" if dash is None else f' stroke-dasharray="{dash[0]} {dash[1]}"'
            return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:.2f}"{style}/>'
        case Dots(places, colour, width):  # a line of no length with a round cap: one element for all dots
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places.tolist())
            return f'<path d="{path}" stroke="{colour}" stroke-width="{width:.2f}" stroke-linecap="round"/>'
        case Area(box, colour, alpha):
            return f'<rect {_at(box)} fill="{colour}" fill-opacity="{alpha:.2f}"/>'
        case Picture(box, raster):
            how = "auto" if raster.smooth else "pixelated"
            whole = f'preserveAspectRatio="none" style="image-rendering:{how}"'
            return f'<image {_at(box)} href="{_uri(raster)}" {whole}/>'
        case Words():
            weight = ' font-weight="bold"' if mark.bold else ""
            name = f' data-name="{escape(mark.name)}"' if mark.name else ""
            style = f'font-size="{mark.size}" fill="{mark.colour}" text-anchor="{mark.anchor}"{weight}{name}'
            return f'<text x="{mark.x:.1f}" y="{mark.y:.1f}" {style}>{escape(mark.text)}</text>'


@lru_cache(maxsize=32)  # the photo and the map stay the same from one movement to the next
def _uri(raster: Raster) -> str:
    """The raster in the text itself. A photo as PNG would be most of what is sent at every movement."""
    file = io.BytesIO()
    kind, options = ("jpeg", {"quality": 88}) if raster.smooth else ("png", {"compress_level": 1})
    Image.fromarray(raster.pixels).save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
