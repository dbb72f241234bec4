"""Drawing: what the pixels say, where the labels stand, and what is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from minimrcnn.errors import UserError
from minimrcnn.show import Instances, Row, draw_instances, overlay, save_curves, save_gallery, save_overlay
from minimrcnn.show.curves import curves, running_mean
from minimrcnn.show.instances import FILL, PALETTE, colours, save_figure

NONE = Instances(np.zeros((0, 4)), [], [], None)


def canvas(width: float = 4, height: float = 3) -> Axes:
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_axes((0, 0, 1, 1))


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def square_mask(x1: int, y1: int, x2: int, y2: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def label_boxes(axes: Axes) -> list[Bbox]:
    """Where each label is on the canvas, its coloured ground included, in pixels."""
    renderer = axes.figure.canvas.get_renderer()
    axes.figure.canvas.draw()
    return [text.get_bbox_patch().get_window_extent(renderer) for text in axes.texts]


# ---------------------------------------------------------------- instances


def test_fill_and_outline_are_where_the_mask_is() -> None:
    picture = torch.full((3, 100, 100), 100, dtype=torch.uint8)
    ring = square_mask(20, 20, 80, 80) - square_mask(40, 40, 60, 60)
    objects = Instances(np.array([[20.0, 20, 80, 80]]), [1], [ring], None)
    image = pixels(overlay(picture, ["ring"], objects))  # 8 pixels for one
    assert image.shape == (800, 800, 3)
    colour = np.array(to_rgb(PALETTE[0])) * 255
    tinted = (1 - FILL) * 100 + FILL * colour
    np.testing.assert_allclose(image[240:300, 240:560].mean((0, 1)), tinted, atol=2)
    assert (image[340:460, 340:460] == 100).all()  # the hole
    assert (image[:140] == 100).all()
    for edge in (160, 320, 480, 640):  # both borders, crossed by a line down the middle
        assert np.abs(image[edge - 6 : edge + 6, 400] - colour).max(axis=1).min() < 40


def test_the_better_object_lies_on_top() -> None:
    picture = np.zeros((3, 100, 100), np.float32)
    masks = torch.tensor(np.stack([square_mask(0, 0, 60, 100), square_mask(40, 0, 100, 100)])).float()[
        :, None
    ]
    objects = Instances(torch.zeros(2, 4), torch.tensor([1, 2]), masks * 0.8, torch.tensor([0.9, 0.6]))
    image = pixels(overlay(picture, ["a", "b"], objects))
    first, second = (FILL * np.array(to_rgb(colour)) * 255 for colour in PALETTE[:2])
    np.testing.assert_allclose(image[700, 400], first, atol=2)  # both masks are here
    np.testing.assert_allclose(image[700, 700], second, atol=2)


def test_boxes_alone() -> None:
    image = pixels(
        overlay(np.zeros((3, 100, 100), np.uint8), ["a"], Instances([[20, 20, 80, 60]], [1], None, None))
    )
    lit = np.argwhere(image.sum(axis=2) > 100)
    assert np.abs(lit.min(axis=0) - (160, 160)).max() <= 2 and np.abs(lit.max(axis=0) - (480, 640)).max() <= 2


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(-10, 99), st.integers(-10, 99), st.integers(0, 60), st.integers(0, 60)),
        max_size=15,
    ),
    st.sampled_from([(40, 100), (100, 100), (100, 30)]),
    st.booleans(),
)
def test_labels_stay_inside_and_apart(raw: list[tuple], size: tuple[int, int], scored: bool) -> None:
    height, width = size
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in raw], dtype=float).reshape(-1, 4)
    labels, scores = [1 + i % 2 for i in range(len(raw))], list(np.linspace(1, 0.05, len(raw)))
    axes = canvas()
    names = ["dining table", "cup"]
    draw_instances(
        axes, np.zeros((3, height, width), np.uint8), boxes, labels, None, scores if scored else None, names
    )
    found = label_boxes(axes)
    frame = axes.get_window_extent()
    assert len(found) >= min(len(raw), 1) or len(raw) > 12
    for i, box in enumerate(found):
        if box.width <= frame.width and box.height <= frame.height:
            assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1
            assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1
        for other in found[:i]:
            assert Bbox.intersection(box.padded(-1), other.padded(-1)) is None


def test_label_texts() -> None:
    def texts(names: list[str], scores: list[float] | None) -> list[str]:
        axes = canvas()
        boxes = np.array([[10, 30, 20, 40], [60, 70, 70, 80]])
        draw_instances(axes, np.zeros((3, 100, 100), np.uint8), boxes, [1, len(names)], None, scores, names)
        return [text.get_text() for text in axes.texts]

    assert texts(["cup", "key"], [0.973, 1.0]) == ["cup .97", "key 1.00"]
    assert texts(["cup", "key"], None) == ["cup", "key"]
    assert texts(["cell"], [0.5, 0.123]) == [".50", ".12"]
    assert texts(["cell"], None) == []


def test_a_crowd_keeps_only_labels_that_hide_nothing() -> None:
    boxes = np.array(
        [[x, y, x + 4, y + 4] for x in range(10, 90, 20) for y in range(10, 90, 20)], dtype=float
    )
    boxes[0] = (10, 10, 60, 60)
    axes = canvas()
    draw_instances(axes, np.zeros((3, 100, 100), np.uint8), boxes, [1] * 16, None, [0.9] * 16, ["a", "b"])
    assert len(axes.texts) == 1


def test_colours() -> None:
    assert colours([1, 2, 1], 2) == [to_rgb(PALETTE[0]), to_rgb(PALETTE[1]), to_rgb(PALETTE[0])]  # by class
    for classes in (1, 80):  # one by one
        assert colours([1, 1, 1], classes) == [to_rgb(colour) for colour in PALETTE[:3]]
    assert len(colours([1] * 100, 1)) == 100


def test_large_and_long_pictures_are_fitted(tmp_path: Path) -> None:
    for shape, expected in (((30, 40), (800, 600)), ((1000, 500), (500, 1000)), ((100, 3200), (1600, 50))):
        save_overlay(tmp_path / "a.png", np.zeros((3, *shape), np.uint8), ["a"], NONE)
        with Image.open(tmp_path / "a.png") as image:
            assert image.size == expected


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.png"):
        save_figure(canvas().figure, tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# ---------------------------------------------------------------- gallery and curves


@pytest.mark.parametrize("count", [0, 1, 12])
def test_gallery(count: int, tmp_path: Path) -> None:
    one = Instances(np.array([[10.0, 10, 50, 50]]), [1], [square_mask(10, 10, 50, 50)], [0.9])
    rows = [Row(f"image {i}", np.full((3, 100, 100), 200, np.uint8), one, NONE) for i in range(count)]
    save_gallery(tmp_path / "gallery.png", rows, ["cup", "key"], "the rule")
    with Image.open(tmp_path / "gallery.png") as image:
        assert image.width == 1100
        pale = (np.asarray(image.convert("RGB")) == 200).all(axis=2)
    # Two whole pictures a row, side by side: 260 x 260 each, one with an object on it.
    assert pale.sum() == pytest.approx(count * 260 * 260 * (2 - 0.16), rel=0.06)


def lines(count: int = 50) -> list[dict]:
    terms = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    each = [dict.fromkeys(terms, 5.0 / (step + 5)) for step in range(count)]
    return [
        {"step": i + 1, **line, "loss": sum(line.values()), "lr": 0.01, "images_per_second": 3.0}
        for i, line in enumerate(each)
    ]


def test_every_curve_has_a_name_and_labelled_axes() -> None:
    figure = curves(lines(), {"bbox": {"AP": 0.5}, "segm": {"AP": 0.4567}})
    assert len(figure.axes) == 8
    for axes in figure.axes:
        assert axes.get_title() and axes.get_xlabel() == "step" and axes.lines
    assert figure.axes[0].get_title().startswith("L, the sum")
    assert "mask AP 0.457, box AP 0.500" in figure.get_suptitle()
    raw, smooth = figure.axes[3].lines
    assert raw.get_ydata()[0] == 1.0 and raw.get_xdata().tolist() == list(range(1, 51))
    assert raw.get_ydata()[-1] < smooth.get_ydata()[0] < 1.0


def test_without_masks_there_is_one_curve_less() -> None:
    bare = [{name: value for name, value in line.items() if name != "loss_mask"} for line in lines()]
    assert len(curves(bare).axes) == 7


@pytest.mark.parametrize("count", [1, 2, 50])
def test_curves_of_a_cut_log(count: int, tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines(count))
    (tmp_path / "log.jsonl").write_text(text + '{"step": 51, "los')  # killed while it wrote
    save_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1100, 540)


def test_a_missing_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.jsonl: there is no step in it"):
        save_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")


values = arrays(float, st.integers(1, 60), elements=st.floats(-5, 5))


@given(values, st.integers(1, 80))
def test_running_mean(noise: np.ndarray, window: int) -> None:
    smooth = running_mean(noise, window)
    assert smooth.shape == noise.shape
    assert smooth.min() >= noise.min() - 1e-9 and smooth.max() <= noise.max() + 1e-9
    np.testing.assert_allclose(running_mean(noise[::-1], window)[::-1], smooth, atol=1e-9)
    half = min(window // 2, (len(noise) - 1) // 2)
    i = len(noise) // 2
    np.testing.assert_allclose(smooth[i], noise[max(i - half, 0) : i + half + 1].mean(), atol=1e-9)


def test_running_mean_leaves_out_what_is_not_finite() -> None:
    np.testing.assert_allclose(running_mean(np.array([1.0, np.nan, 3.0, np.inf, 5.0]), 3), [1, 2, 3, 4, 5])
    assert np.isnan(running_mean(np.array([np.nan, np.nan]), 3)).all()


# ---------------------------------------------------------------- imports


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never() -> None:
    code = (
        "import sys, minimrcnn, minimrcnn.__main__, minimrcnn.engine.predict, minimrcnn.engine.train\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import minimrcnn.show\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
