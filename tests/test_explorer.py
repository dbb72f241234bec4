"""The explorer without a browser: its controls, its mouse, and what is left where widgets are missing."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from minimrcnn.show import RoIExplorer, alignment_error
from minimrcnn.show.lessons import LESSONS, TEACHING_ROI, picture_named

widgets = pytest.importorskip(
    "ipywidgets", reason="the explorer is live with ipywidgets: pip install ipywidgets"
)
ipyevents = pytest.importorskip(
    "ipyevents", reason="the RoI is dragged with ipyevents: pip install ipyevents"
)


@pytest.fixture
def explorer() -> RoIExplorer:
    return RoIExplorer()


def written(explorer: RoIExplorer, name: str) -> str:
    """What the live drawing says under an operation's crop."""
    return re.search(rf'data-name="{name}">([^<]*)<', explorer.controls.view.value)[1]


def event(kind: str, x: float, y: float, buttons: int = 1, width: float = 900) -> dict:
    """As ipyevents sends it; x, y: pixels of the drawing."""
    scale = width / 900
    place = {"relativeX": x * scale, "relativeY": y * scale, "boundingRectWidth": width}
    return {"type": kind, "buttons": buttons} | place


def drag(
    explorer: RoIExplorer, start: tuple[float, float], by: tuple[float, float], width: float = 900
) -> None:
    end = start[0] + by[0], start[1] + by[1]
    half = start[0] + by[0] / 2, start[1] + by[1] / 2
    explorer.controls.on_mouse(event("mousedown", *start, width=width))
    explorer.controls.on_mouse(event("mousemove", *half, width=width))
    explorer.controls.on_mouse(event("mouseup", *end, buttons=0, width=width))


def in_picture(explorer: RoIExplorer, x: float, y: float, view: int = 0) -> tuple[float, float]:
    """A place of the picture as pixels of the drawing; view 0 shows all of it, the others the cells."""
    return tuple(explorer.drawing.pictures[view].place([(x, y)])[0])


# ---------------------------------------------------------------- controls


def test_the_numbers_are_those_of_the_operations_whatever_is_chosen(explorer: RoIExplorer) -> None:
    controls = explorer.controls

    def agrees(**settings: object) -> None:
        roi = tuple(corner.value for corner in controls.corners)
        size = (320 // settings["stride"],) * 2
        for name, title in (("roi_pool", "RoIPool"), ("roi_warp", "RoIWarp"), ("roi_align", "RoIAlign")):
            assert written(explorer, name) == f"{title} {alignment_error(name, roi, size=size, **settings)}"

    agrees(stride=16)
    controls.corners[0].value = 100.25
    agrees(stride=16)
    for stride in (4, 8, 32):
        controls.stride.value = stride
        agrees(stride=stride)
    controls.output_size.value = 14
    agrees(stride=32, output_size=14)
    controls.sampling_ratio.value = 0
    agrees(stride=32, output_size=14, sampling_ratio=0)
    controls.aligned.value = False
    agrees(stride=32, output_size=14, sampling_ratio=0, aligned=False)


@pytest.mark.parametrize(("name", "title"), [("roi_pool", "RoIPool"), ("roi_warp", "RoIWarp")])
def test_the_operation_is_chosen(explorer: RoIExplorer, name: str, title: str) -> None:
    explorer.controls.detail.value = name
    assert f"{title}, bin (0, 0) enlarged" in explorer.controls.view.value
    assert explorer.scene.detail == name


def test_pushes(explorer: RoIExplorer) -> None:
    controls = explorer.controls
    controls.push.value = 0.1
    for arrow, moved in zip(
        "→→↓←↑↓", [(0.1, 0), (0.2, 0), (0.2, 0.1), (0.1, 0.1), (0.1, 0), (0.1, 0.1)], strict=True
    ):
        next(button for button in controls.pushes if button.description == arrow).click()
        x1, y1, x2, y2 = TEACHING_ROI
        expected = x1 + moved[0], y1 + moved[1], x2 + moved[0], y2 + moved[1]
        assert explorer.scene.roi == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", LESSONS)
def test_every_lesson_shows_what_it_speaks_of(explorer: RoIExplorer, name: str) -> None:
    explorer.controls.lesson.value = name
    lesson = LESSONS[name]
    assert explorer.scene.roi == lesson.roi and explorer.scene.detail == lesson.detail
    assert explorer.controls.picture.value == lesson.picture
    assert lesson.look.split(".")[0][:20].replace("'", "&#x27;") in explorer.controls.note.value
    explorer.controls.lesson.value = "as at first"
    assert explorer.scene.roi == TEACHING_ROI and explorer.controls.note.value == ""


def test_on_the_diagonal_edge_rounding_parts_x_from_y(explorer: RoIExplorer) -> None:
    explorer.controls.lesson.value = "a diagonal edge"
    crops, errors = explorer.scene.crops, explorer.scene.errors
    assert errors["roi_pool"].y - errors["roi_pool"].x == pytest.approx(15.8, abs=0.01)  # of 112 pixels
    # Half covered, all along, and a little more: the RoI lies 0.2 px below the edge.
    np.testing.assert_allclose(np.diagonal(crops["roi_align"]), 127.5 * (1 + 0.2 / 16), atol=0.01)
    assert np.diagonal(crops["roi_warp"]).min() > 200


def test_half_a_pixel_more_moves_roi_pool_by_a_cell(explorer: RoIExplorer) -> None:
    explorer.controls.lesson.value = "half a pixel of the picture more"
    before = explorer.scene.readings["roi_pool"][1].extent[0]
    explorer.controls.push.value = 0.5
    explorer.controls.pushes[1].click()
    assert explorer.scene.readings["roi_pool"][1].extent[0] == before + 16


def test_what_cannot_be_drawn_leaves_the_drawing(explorer: RoIExplorer) -> None:
    drawing = explorer.controls.view.value
    explorer.controls.corners[0].value = 300.0
    assert "inside out" in explorer.controls.status.value and 'role="alert"' in explorer.controls.status.value
    assert explorer.controls.view.value == drawing and explorer.scene.roi == TEACHING_ROI
    explorer.controls.corners[0].value = 90.0
    assert "inside out" not in explorer.controls.status.value and explorer.scene.roi[0] == 90


def test_fewer_bins_than_the_enlarged_one(explorer: RoIExplorer) -> None:
    explorer.controls.bin = (6, 6)
    explorer.controls.output_size.value = 3
    assert explorer.scene.bin == (2, 2)


def test_a_picture_of_ones_own() -> None:
    own = RoIExplorer(torch.rand(3, 120, 200), (10, 10, 60, 70), stride=2, sampling_ratio=3, output_size=5)
    assert own.controls.picture.options[0] == "yours" and own.controls.stride.value == 2
    own.controls.lesson.value = "a ramp, f(x, y) = x"
    own.controls.lesson.value = "as at first"
    assert own.scene.source.pixels == (120, 200) and own.scene.sampling_ratio == 3


# ---------------------------------------------------------------- the mouse


@pytest.mark.parametrize("width", [900, 600, 1000])  # a page may show the drawing smaller; never larger
def test_the_roi_is_dragged_over_the_picture(explorer: RoIExplorer, width: float) -> None:
    scale = min(width, 900) / 900
    start = in_picture(explorer, 150, 120)
    per_pixel = explorer.drawing.pictures[0].scale[0]
    explorer.controls.on_mouse(event("mousedown", *start) | {"boundingRectWidth": width} | _at(start, scale))
    end = start[0] + 20 * per_pixel, start[1] - 10 * per_pixel
    explorer.controls.on_mouse(event("mouseup", *end, 0) | {"boundingRectWidth": width} | _at(end, scale))
    x1, y1, x2, y2 = TEACHING_ROI
    assert explorer.scene.roi == pytest.approx((x1 + 20, y1 - 10, x2 + 20, y2 - 10), abs=0.051)


def _at(place: tuple[float, float], scale: float) -> dict:
    return {"relativeX": place[0] * scale, "relativeY": place[1] * scale}


@pytest.mark.parametrize("view", [0, 1, 2, 3])
def test_sides_and_corners_are_dragged(explorer: RoIExplorer, view: int) -> None:
    x1, y1, x2, y2 = TEACHING_ROI
    per_pixel = explorer.drawing.pictures[view].scale[0]
    drag(explorer, in_picture(explorer, x2, 120, view), (10 * per_pixel, 30))
    assert explorer.scene.roi == pytest.approx((x1, y1, x2 + 10, y2), abs=0.051)
    per_pixel = explorer.drawing.pictures[view].scale[0]
    drag(explorer, in_picture(explorer, x1, y1, view), (-8 * per_pixel, 4 * per_pixel))
    assert explorer.scene.roi == pytest.approx((x1 - 8, y1 + 4, x2 + 10, y2), abs=0.051)


def test_a_side_stops_at_the_other(explorer: RoIExplorer) -> None:
    x1, y1, x2, y2 = TEACHING_ROI
    drag(explorer, in_picture(explorer, x1, 120), (500, 0))
    assert explorer.scene.roi == (x2, y1, x2, y2)


def test_a_tiny_roi_is_moved_not_stretched(explorer: RoIExplorer) -> None:
    explorer.controls.lesson.value = "a RoI smaller than a bin"
    x1, y1, x2, y2 = explorer.scene.roi
    drag(explorer, in_picture(explorer, x1, y1), (58.125, 0))  # 100 pixels
    assert explorer.scene.roi == pytest.approx((x1 + 100, y1, x2 + 100, y2), abs=0.051)


def test_beside_the_roi_there_is_nothing_to_hold(explorer: RoIExplorer) -> None:
    drag(explorer, in_picture(explorer, 10, 10), (50, 50))
    drag(explorer, (450, 745), (50, 0))
    assert explorer.scene.roi == TEACHING_ROI


def test_while_it_is_dragged_the_cells_stand_still(explorer: RoIExplorer) -> None:
    window = explorer.scene.window
    start = in_picture(explorer, 150, 120)
    explorer.controls.on_mouse(event("mousedown", *start))
    explorer.controls.on_mouse(event("mousemove", start[0] + 60, start[1]))
    assert explorer.scene.window == window and explorer.scene.roi != TEACHING_ROI
    explorer.controls.on_mouse(event("mouseup", start[0] + 60, start[1], 0))
    assert explorer.scene.window != window


def test_a_button_let_go_elsewhere_lets_go(explorer: RoIExplorer) -> None:
    start = in_picture(explorer, 150, 120)
    explorer.controls.on_mouse(event("mousedown", *start))
    explorer.controls.on_mouse(event("mousemove", start[0] + 5, start[1], buttons=0))
    roi = explorer.scene.roi
    explorer.controls.on_mouse(event("mousemove", start[0] + 50, start[1], buttons=1))
    assert explorer.scene.roi == roi


def test_a_bin_of_a_crop_is_clicked(explorer: RoIExplorer) -> None:
    place = explorer.drawing.bins[1].place([(3.5, 2.5)])[0]
    explorer.controls.on_mouse(event("mousedown", *place))
    assert explorer.scene.bin == (2, 3) and "bin (2, 3) enlarged" in explorer.controls.view.value


def test_movements_that_wait_are_drawn_once(explorer: RoIExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    show = explorer.show
    monkeypatch.setattr(explorer, "show", lambda *args: drawn.append(args) or show(*args))
    start = in_picture(explorer, 150, 120)

    async def kernel() -> None:
        explorer.controls.on_mouse(event("mousedown", *start))
        for i in range(20):
            explorer.controls.on_mouse(event("mousemove", start[0] + i, start[1]))
        await asyncio.sleep(0.3)

    asyncio.run(kernel())
    assert len(drawn) == 1
    assert explorer.scene.roi[0] == explorer.controls.corners[0].value != TEACHING_ROI[0]


# ---------------------------------------------------------------- what it costs, and without widgets


def test_a_redraw_takes_less_than_a_tenth_of_a_second(explorer: RoIExplorer) -> None:
    def milliseconds() -> float:
        start = time.process_time()  # not the clock on the wall: it counts what others do, too
        explorer.controls.redraw()
        return (time.process_time() - start) * 1000

    threads = torch.get_num_threads()
    assert min(milliseconds() for _ in range(10)) < 100
    assert torch.get_num_threads() == threads


def test_a_reader_without_widgets_sees_the_figure(explorer: RoIExplorer) -> None:
    data, about = explorer._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.controls.box.model_id
    assert data["text/plain"] == explorer.scene.summary and data["image/png"].startswith("iVBOR")
    assert "RoIPool reads (80, 48)" in about["image/png"]["alt"]


def test_without_ipywidgets_it_is_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "minimrcnn.show.controls", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    plain = RoIExplorer(output_size=4)
    assert plain.controls is None
    data, _ = plain._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and "RoIPool" in data["text/plain"]


def test_without_ipyevents_it_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimrcnn.show.controls.Event", None)
    typed = RoIExplorer()
    assert typed.controls.events is None and "install ipyevents" in typed.controls.status.value
    typed.controls.corners[0].value = 80.0
    assert typed.scene.roi[0] == 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roi": (float("nan"), 0, 1, 1)}, "x1 is nan"),
        ({"output_size": 0}, "output_size: 0"),
        ({"output_size": (3, 4)}, "one number"),
        ({"detail": "roipool"}, "none of the operations"),
        ({"stride": -1}, "stride"),
        ({"picture_or_map": torch.zeros(2, 3, 4, 5)}, "of one image at a time"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoIExplorer(**options)


def test_there_is_no_such_picture() -> None:
    with pytest.raises(ValueError, match="'toys', 'diagonal edge' and 'ramp'"):
        picture_named("cats")


def test_the_widgets_wait_until_they_are_used() -> None:
    code = (
        "import sys, minimrcnn.show\n"
        "assert not {'ipywidgets', 'ipyevents', 'IPython', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
