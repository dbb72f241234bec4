"""How a run went: every loss term, the learning rate and the speed, by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minimrcnn.engine.log import read_log
from minimrcnn.errors import UserError
from minimrcnn.show.instances import save_figure

TERMS = {
    "loss": "L, the sum of all terms",
    "loss_classifier": "L_cls: which class is it?",
    "loss_box_reg": "L_box: where exactly?",
    "loss_mask": "L_mask: which pixels?",
    "loss_objectness": "RPN: is there an object?",
    "loss_rpn_box_reg": "RPN: where roughly?",
}
RAW, SMOOTH, OTHER = "#BBBBBB", "#0072B2", "#009E73"


def save_curves(log: Path, path: Path, metrics: dict | None = None) -> None:
    """Write the curves of a run's log.jsonl as a PNG.

    Each loss term as it was (pale) and as a running mean (bold); then learning rate and images/s.
    metrics: of `evaluate`, to name the AP that the run reached in the title.
    Raises UserError for a log without a line, and if the file cannot be written.
    """
    lines = read_log(log)
    if not lines:
        raise UserError(f"{log}: there is no step in it, so there is nothing to draw. Train first.")
    save_figure(curves(lines, metrics), path)


def curves(lines: list[dict], metrics: dict | None = None) -> Figure:
    """The figure of `save_curves`; lines: as `engine.log.read_log` gives them."""
    names = [name for name in TERMS if name in lines[0]]
    figure = Figure(figsize=(11, 5.4), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 4, sharex=True)
    steps = np.array([line["step"] for line in lines])
    window = max(len(lines) // 30, 5)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_loss(axes, steps, _column(lines, name), window)
        axes.set_title(TERMS[name], fontsize=10)
    rate, speed = grid.flat[len(names)], grid.flat[len(names) + 1]
    rate.plot(steps, _column(lines, "lr"), color=OTHER)
    rate.set_title("learning rate", fontsize=10)
    speed.plot(steps, _column(lines, "images_per_second"), color=RAW, linewidth=0.7)
    speed.plot(steps, running_mean(_column(lines, "images_per_second"), window), color=OTHER)
    speed.set_title("speed", fontsize=10)
    speed.set_ylabel("images / s", fontsize=9)
    for axes in grid.flat[: len(names) + 2]:
        _finish(axes)
    for axes in grid.flat[len(names) + 2 :]:
        axes.remove()
    figure.suptitle(_title(lines, window, metrics), fontsize=11)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over about `window` neighbours on both sides of each value, over fewer at the ends.

    Values that are not finite are left out; where there is none around, the result is NaN.
    """
    size = min(window // 2 * 2 + 1, (len(values) - 1) // 2 * 2 + 1)
    kernel = np.ones(size)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _column(lines: list[dict], name: str) -> np.ndarray:
    """(S,) float64 of one entry of the log; NaN where it is null or missing."""
    values = [line.get(name) for line in lines]
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _draw_loss(axes: Axes, steps: np.ndarray, values: np.ndarray, window: int) -> None:
    smooth = running_mean(values, window)
    axes.plot(steps, values, color=RAW, linewidth=0.7)
    axes.plot(steps, smooth, color=SMOOTH, linewidth=1.6)
    axes.set_ylabel("loss", fontsize=9)
    if np.isfinite(values).any():
        # A few wild steps at the start would press the rest of the curve flat.
        top = max(np.nanpercentile(values, 99), np.nanmax(smooth)) * 1.1
        axes.set_ylim(0, top if top > 0 else 1)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _title(lines: list[dict], window: int, metrics: dict | None) -> str:
    reached = [
        f"{what} AP {metrics[kind]['AP']:.3f}"
        for kind, what in (("segm", "mask"), ("bbox", "box"))
        if metrics and kind in metrics
    ]
    text = f"{lines[-1]['step']} steps; bold: mean over {window // 2 * 2 + 1} steps"
    return "; ".join([text, ", ".join(reached)]) if reached else text
