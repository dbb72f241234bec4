"""What the student's own code did, drawn beside what it should do."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minimrcnn.show.instances import PALETTE
from minimrcnn.show.notebook import NotebookFigure

WIDTH, HEIGHT = 860, 300  # pixels
SECONDS = 10.0  # for the student's function
Draw = Callable[[Axes, object], None]


def attempt(
    function: Callable[..., object],
    *arguments: object,
    reference: Callable[..., object] | None = None,
    draw: Draw | None = None,
    title: str = "",
    alt: str = "",
) -> NotebookFigure:
    """A student's function and the reference, called with the same arguments and drawn side by side.

    Where the function is a stub or fails, the picture says so; nothing is raised. Its summary line gives the
    largest difference.

    Args:
        function: the student's. arguments: for it and for the reference; it gets copies.
        reference: any function that takes the same arguments; by default that of the exercise of this name.
        draw: draws an answer on axes, such as `box_outlines(height, width)`; by default a heat map of what
            has two axes or more, bars otherwise, and a single number in digits too.
        title: of the figure; the function's name by default.
        alt: what is to be seen, for who cannot.
    """
    from minimrcnn.classroom.chapters import all_exercises

    called = getattr(function, "__name__", "your function")
    name = title or called
    if reference is None and called in all_exercises():
        reference = all_exercises()[called].reference
    alt = alt or f"Two pictures side by side: what {name} gave, and what the reference gives."
    figure = NotebookFigure(WIDTH, HEIGHT, "", alt)
    left, right = (figure.add_axes((x, 0.16, 0.37, 0.68)) for x in (0.07, 0.53))
    if reference is None:
        figure.summary = f"{name}: there is no exercise of this name to compare with"
        _say(left, figure.summary)
        return figure
    wanted = reference(*arguments)
    answer, said, failed = _call(function, arguments, wanted)
    by_default, draw = draw is None, draw or _drawing(wanted)
    undrawn = "" if failed else _draw(draw, left, answer)
    if failed or undrawn:
        _say(left, said if failed else undrawn)
    _draw(draw, right, wanted)
    if by_default and right.images:  # one scale for both
        bar = figure.colorbar(right.images[0], cax=figure.add_axes((0.925, 0.25, 0.012, 0.5)))
        bar.locator = MaxNLocator(4)
        bar.formatter.set_powerlimits((-2, 4))  # 0.0005 would run out of the page: 5, and 1e-4 above the bar
        bar.ax.tick_params(labelsize=9)
    left.set_title("yours", fontsize=10)
    right.set_title("the reference", fontsize=10)
    figure.suptitle(name, fontsize=11, x=0.07, ha="left")
    figure.summary = f"{name}: {said}"
    return figure


def _call(function: Callable[..., object], arguments: tuple, wanted: object) -> tuple[object, str, bool]:
    """The answer, a line about it, and whether there is none that can be drawn."""
    # The checks' own care: copies, a time limit, and a word for every way to fail.
    from minimrcnn.classroom.answers import Unfit, compared, like
    from minimrcnn.classroom.calling import call
    from minimrcnn.classroom.stopping import TimeUp, time_limit

    try:
        with time_limit(SECONDS):
            outcome = call(function, arguments)
    except TimeUp:
        return None, f"does not come to an end: stopped after {SECONDS:g} s", True
    if outcome.is_stub:
        return None, "not written yet", True
    if outcome.error is not None:
        return None, outcome.problem(), True
    try:
        return outcome.answer, compared(like(outcome.answer, wanted), like(wanted, wanted)), False
    except Unfit as why:
        return None, str(why), True


def _draw(draw: Draw, axes: Axes, answer: object) -> str:
    """Draw; or say why that does not go."""
    try:
        draw(axes, answer)
        return ""
    except Exception as error:
        axes.clear()
        return f"cannot be drawn: {type(error).__name__}: {' '.join(str(error).split())}"


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, _wrapped(text), ha="center", va="center", transform=axes.transAxes, fontsize=10)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), 44)[:8])


# ---------------------------------------------------------------- drawing answers


def box_outlines(height: float, width: float, boxes: Tensor | None = None) -> Draw:
    """A way to draw answers that are boxes (N, 4), or with `boxes` their rows, on a picture of this size."""

    def draw(axes: Axes, answer: object) -> None:
        found = answer[0] if isinstance(answer, tuple) else answer
        rows = _array(boxes if boxes is not None else found).reshape(-1, 4)
        rows = rows[_array(found).astype(int)] if boxes is not None else rows
        for i, (x1, y1, x2, y2) in enumerate(rows):
            colour = PALETTE[i % len(PALETTE)]
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5))
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes.set_xlabel("x, px", fontsize=9)
        axes.set_ylabel("y, px", fontsize=9)
        axes.tick_params(labelsize=9)

    return draw


def _drawing(wanted: object) -> Draw:
    """How to draw answers when nothing else is asked for; both sides with the scale of `wanted`."""
    values = _array(wanted[0] if isinstance(wanted, tuple) else wanted)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = high if high > low else low + 1  # a map of one value has a colour too, the same on both sides

    def draw(axes: Axes, answer: object) -> None:
        values = _array(answer[0] if isinstance(answer, tuple) else answer)
        if not values.size:
            _say(axes, f"nothing: shape {values.shape}")
        elif values.ndim >= 2:
            axes.imshow(_flat(values), cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
        else:
            bars = axes.bar(np.arange(values.size), values.ravel(), color="#0072B2")
            axes.set_xlim(-1, max(values.size, 1))
            if values.size == 1:
                axes.bar_label(bars, [f"{values.item():g}"], label_type="center", color="white", fontsize=11)
        for axis in (axes.xaxis, axes.yaxis) if values.ndim == 2 else (axes.xaxis,):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        if values.ndim > 2:
            axes.set_axis_off()  # several maps: cells have no numbers
        axes.set_xlabel("column" if values.ndim == 2 else "index", fontsize=9)
        axes.set_ylabel("row" if values.ndim == 2 else "value", fontsize=9)
        axes.tick_params(labelsize=9)
        if values.size == 1:
            axes.set(xticks=[], xlabel="")

    return draw


def _array(answer: object) -> np.ndarray:
    if isinstance(answer, Tensor):
        return answer.detach().cpu().double().numpy()
    if isinstance(answer, tuple | list) and any(isinstance(item, Tensor) for item in answer):
        return np.stack([_array(item) for item in answer])
    return np.array(answer, dtype=float)


def _flat(values: np.ndarray) -> np.ndarray:
    """(H, W) as it is; of (C, H, W) and (B, C, H, W) the first eight maps, four beside one another."""
    if values.ndim == 2:
        return values
    maps = values.reshape(-1, *values.shape[-2:])[:8]
    gap = max(1, maps.shape[1] // 8)
    framed = np.pad(
        maps, ((0, -len(maps) % min(4, len(maps) or 1)), (0, gap), (0, gap)), constant_values=np.nan
    )
    rows = framed.reshape(-1, min(4, len(maps) or 1), *framed.shape[1:])
    return np.vstack([np.hstack(row) for row in rows]) if len(maps) else np.zeros((1, 1))
