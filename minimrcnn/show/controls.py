"""The explorer's controls, in ipywidgets and ipyevents."""

from __future__ import annotations

import asyncio
from html import escape
from typing import TYPE_CHECKING

import ipywidgets as widgets

from minimrcnn.show.lessons import Lesson
from minimrcnn.show.mouse import Grip, Roi, bin_at, grip_at, sheet_position
from minimrcnn.show.reading import TITLES

if TYPE_CHECKING:
    from minimrcnn.show.explorer import RoIExplorer

try:
    from ipyevents import Event
except ImportError:  # the RoI is typed and pushed, but not dragged
    Event = None

RATIOS = {"as many as cells": 0, "1 x 1": 1, "2 x 2": 2, "4 x 4": 4}
PUSHES = {"←": (-1, 0), "→": (1, 0), "↑": (0, -1), "↓": (0, 1)}
STEPS = {"0.1 px": 0.1, "0.5 px": 0.5, "1 px": 1.0, "4 px": 4.0}
MOUSE = ["mousedown", "mouseup", "dragstart"]  # and mousemove while it holds something


def _sized(pixels: int) -> dict:
    """A control's width, and its description as wide as its words."""
    return {"layout": widgets.Layout(width=f"{pixels}px"), "style": {"description_width": "initial"}}


def _buttons(options: list, value: object, width: int) -> widgets.ToggleButtons:
    """Buttons of which one is down; width: of each, pixels."""
    layout = widgets.Layout(width="auto")
    style = {"button_width": f"{width}px"}
    return widgets.ToggleButtons(options=options, value=value, layout=layout, style=style)


class Controls:
    """Every control, and the drawing below them.

    Attributes:
        box: the widget that holds them all.
    """

    def __init__(self, explorer: RoIExplorer) -> None:
        self.explorer = explorer
        self.bin = explorer.scene.bin
        self._quiet = False  # while several controls are set at once
        self._pending = False  # a drawing is on its way
        self._grip: Grip | None = None
        self._make_places(explorer.lesson)
        self._make_choices(explorer.lesson)
        self.view = widgets.HTML(
            explorer.svg, layout=widgets.Layout(width="100%", max_width="900px", margin="0")
        )
        self.note, self.status = widgets.HTML(), widgets.HTML()
        self.view.add_class("minimrcnn-drawing")
        self.status.add_class("minimrcnn-status")
        self.box = self._arrange()
        self._tell()
        self._listen()

    # ------------------------------------------------------------ making them

    def _make_places(self, lesson: Lesson) -> None:
        """What is looked at, and where."""
        options = list(self.explorer.lessons)
        self.lesson = widgets.Dropdown(options=options, description="show", **_sized(330))
        names = self.explorer.pictures
        self.picture = widgets.Dropdown(
            options=names, value=lesson.picture, description="picture", **_sized(180)
        )
        self.corners = [
            widgets.FloatText(value, description=name, step=0.1, **_sized(104))
            for name, value in zip(("x1", "y1", "x2", "y2"), lesson.roi, strict=True)
        ]
        self.push = widgets.Dropdown(options=STEPS, value=0.5, description="push by", **_sized(138))
        layout = widgets.Layout(width="36px")
        self.pushes = [
            widgets.Button(description=arrow, tooltip=f"push the RoI {arrow}", layout=layout)
            for arrow in PUSHES
        ]

    def _make_choices(self, lesson: Lesson) -> None:
        """What is done there."""
        strides = sorted({4, 8, 16, 32, lesson.stride})
        self.stride = _buttons(strides, lesson.stride, 40)
        self.output_size = widgets.BoundedIntText(
            lesson.output_size, min=1, max=max(28, lesson.output_size), description="bins", **_sized(96)
        )
        ratio = lesson.sampling_ratio
        ratios = RATIOS if ratio in RATIOS.values() else RATIOS | {f"{ratio} x {ratio}": ratio}
        self.sampling_ratio = widgets.Dropdown(
            options=ratios, value=ratio, description="points a bin", **_sized(210)
        )
        layout = widgets.Layout(width="90px")
        self.aligned = widgets.Checkbox(lesson.aligned, description="aligned", indent=False, layout=layout)
        self.detail = _buttons([(title, name) for name, title in TITLES.items()], lesson.detail, 76)

    def _arrange(self) -> widgets.VBox:
        wrap = widgets.Layout(flex_flow="row wrap", max_width="900px", align_items="center")
        rows = [
            [self.lesson, self.picture, widgets.Label("enlarge"), self.detail],
            [*self.corners, self.push, *self.pushes],
            [widgets.Label("stride"), self.stride, self.output_size, self.sampling_ratio, self.aligned],
        ]
        boxes = [widgets.Box(row, layout=wrap) for row in rows]
        return widgets.VBox([*boxes, self.note, self.view, self.status])

    def _listen(self) -> None:
        choices = self.picture, self.stride, self.output_size, self.sampling_ratio, self.aligned, self.detail
        for control in (*choices, *self.corners):
            control.observe(lambda _: self.redraw(), "value")
        self.lesson.observe(lambda change: self._start(self.explorer.lessons[change["new"]]), "value")
        for button in self.pushes:
            button.on_click(lambda button: self._push(*PUSHES[button.description]))
        self.events = None
        if Event is not None:
            self.events = Event(source=self.view, watched_events=MOUSE, prevent_default_action=True, wait=25)
            self.events.on_dom_event(self.on_mouse)

    # ------------------------------------------------------------ what they ask for

    def settings(self) -> Lesson:
        """What the controls say now."""
        roi = tuple(corner.value for corner in self.corners)
        choices = self.output_size.value, self.sampling_ratio.value, self.aligned.value, self.detail.value
        look = self.explorer.lessons[self.lesson.value].look
        return Lesson(self.picture.value, roi, self.stride.value, *choices, look)

    def redraw(self) -> None:
        """Draw what the controls say; where that cannot be drawn, say why and keep the drawing."""
        if self._quiet:
            return
        bins = self.output_size.value - 1
        self.bin = min(self.bin[0], bins), min(self.bin[1], bins)
        window = self.explorer.scene.window if self._grip is not None else None
        try:
            self.view.value = self.explorer.show(self.settings(), self.bin, window)
        except ValueError as error:
            self.status.value = f'<span role="alert" style="color:#D55E00">{escape(str(error))}</span>'
        else:
            self._tell()

    def _tell(self) -> None:
        how = "drag the RoI or its sides; " if Event is not None else "install ipyevents to drag the RoI; "
        hint = f"{how}click a bin of a crop to enlarge it; drawn in {self.explorer.redraw_ms:.0f} ms"
        self.status.value = f'<span style="opacity:0.7">{hint}</span>'
        look = self.explorer.lesson.look
        self.note.value = f'<b style="display:block;line-height:1.4">{escape(look)}</b>' if look else ""

    def _start(self, lesson: Lesson) -> None:
        """Set every control at once."""
        self._quiet = True
        for name in ("picture", "stride", "output_size", "sampling_ratio", "aligned", "detail"):
            getattr(self, name).value = getattr(lesson, name)
        self._set_corners(lesson.roi)
        self._quiet = False
        self.bin = (0, 0)
        self.redraw()

    def _set_corners(self, roi: Roi) -> None:
        for corner, value in zip(self.corners, roi, strict=True):
            corner.value = value

    def _push(self, right: int, down: int) -> None:
        by = self.push.value
        x1, y1, x2, y2 = (corner.value for corner in self.corners)
        self._quiet = True
        self._set_corners(
            tuple(round(v, 2) for v in (x1 + right * by, y1 + down * by, x2 + right * by, y2 + down * by))
        )
        self._quiet = False
        self.redraw()

    # ------------------------------------------------------------ the mouse

    def on_mouse(self, event: dict) -> None:
        """A mouse event of ipyevents."""
        x, y = sheet_position(event)
        if event["type"] == "mousedown":
            self._grab(x, y)
        elif self._grip is not None and event["type"] in ("mousemove", "mouseup"):
            self._quiet = True
            self._set_corners(self._grip.roi_at(x, y))
            self._quiet = False
            # A button let go outside the drawing is noticed when the mouse comes back.
            if event["type"] == "mouseup" or not event["buttons"] & 1:
                self._grip = None
                self.events.watched_events = MOUSE
                self.redraw()
            else:
                self._redraw_soon()

    def _grab(self, x: float, y: float) -> None:
        scene, drawing = self.explorer.scene, self.explorer.drawing
        bin = bin_at(drawing, x, y)
        if bin is not None and all(0 <= i < bins for i, bins in zip(bin, scene.output_size, strict=True)):
            self.bin = bin
            self.redraw()
            return
        self._grip = grip_at(drawing, scene.roi, x, y)
        if self._grip is not None:
            self.events.watched_events = [*MOUSE, "mousemove"]

    def _redraw_soon(self) -> None:
        """Draw once for all movements that are waiting: a drawing takes longer than the mouse does."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel
            self.redraw()
            return
        if not self._pending:
            self._pending = True
            loop.call_later(0.01, self._redraw_now)

    def _redraw_now(self) -> None:
        self._pending = False
        self.redraw()
