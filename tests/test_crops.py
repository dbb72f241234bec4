"""The crop comparison: what it says is what the operations do, and it can be read."""

from __future__ import annotations

import io
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from minimrcnn import roi_ops
from minimrcnn.show import alignment_error, compare_crops
from minimrcnn.show.crops import draw
from minimrcnn.show.lessons import TEACHING_ROI, picture_named
from minimrcnn.show.panels import COLOURS
from minimrcnn.show.reading import Axis, neighbours, read_axis
from minimrcnn.show.render import as_svg
from minimrcnn.show.scene import OPERATIONS, as_source, make_scene, words

RAMP = torch.arange(25.0).expand(18, 25)
edge = st.floats(-120, 500, width=32)
side = st.floats(0, 300, width=32)


def toys() -> torch.Tensor:
    return picture_named("toys")


# ---------------------------------------------------------------- the way to a crop


def crop_from_axes(name: str, values: np.ndarray, down: Axis, across: Axis, stride: int) -> np.ndarray:
    """The crop put together from what the figure draws, number by number."""
    crop = np.zeros((len(down.bins), len(across.bins)))
    for row in range(len(down.bins)):
        for column in range(len(across.bins)):
            if name == "roi_pool":
                (top, bottom), (left, right) = down.bins[row] / stride, across.bins[column] / stride
                cells = values[max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)]
                crop[row, column] = cells.max() if cells.size else 0
            else:
                crop[row, column] = mean_of_points(values, down.points[row], across.points[column])
    return crop


def mean_of_points(values: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> float:
    height, width = values.shape
    points = [
        sum(wy * wx * values[j, i] for j, wy in neighbours(y, height) for i, wx in neighbours(x, width))
        for y in ys
        for x in xs
    ]
    return sum(points) / len(points) if points else 0.0


@given(
    st.sampled_from(OPERATIONS),
    edge,
    edge,
    side,
    side,
    st.sampled_from([4, 8, 16, 32]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
)
def test_what_is_drawn_is_what_is_computed(
    name: str, x: float, y: float, width: float, height: float, stride: int, rows: int, columns: int,
    ratio: int, aligned: bool,
) -> None:  # fmt: skip
    features = torch.randn(1, 1, 11, 17, generator=torch.Generator().manual_seed(0))
    roi = x, y, x + width, y + height
    options = {} if name == "roi_pool" else {"sampling_ratio": ratio}
    if name == "roi_align":
        options["aligned"] = aligned
    crop = getattr(roi_ops, name)(features, torch.tensor([[0, *roi]]), (rows, columns), 1 / stride, **options)
    corners = torch.tensor(roi).tolist()  # as float32 holds them
    down = read_axis(name, corners[1], corners[3], rows, stride, ratio, aligned)
    across = read_axis(name, corners[0], corners[2], columns, stride, ratio, aligned)
    drawn = crop_from_axes(name, features[0, 0].double().numpy(), down, across, stride)
    np.testing.assert_allclose(drawn, crop[0, 0].numpy(), atol=2e-4)


def test_a_picture_is_read_as_the_mean_brightness_of_its_cells() -> None:
    scene = make_scene(as_source(toys(), 16), TEACHING_ROI)
    brightness = F.avg_pool2d(toys().float().mean(dim=0)[None, None], 16)
    rois = torch.tensor([[0, *TEACHING_ROI]])
    for name in OPERATIONS:
        options = {"aligned": True} if name == "roi_align" else {}
        crop = getattr(roi_ops, name)(brightness, rois, 7, 1 / 16, **options)[0, 0]
        np.testing.assert_allclose(scene.crops[name], crop, atol=1e-3)
        error = alignment_error(name, TEACHING_ROI, size=(20, 20))
        assert scene.errors[name].x == error.x and scene.errors[name].worst == error.worst


def test_the_last_cells_may_lie_over_the_edge() -> None:
    picture = torch.full((3, 40, 50), 200, dtype=torch.uint8)
    source = as_source(picture, 16)
    assert source.cells == (3, 4) and source.pixels == (40, 50)
    assert (source.features == 200).all()


def test_on_a_ramp_roi_align_is_right_and_rounding_is_not() -> None:
    scene = make_scene(as_source(RAMP, 16), TEACHING_ROI)
    x1, _, x2, _ = TEACHING_ROI
    right = (x1 + (np.arange(7) + 0.5) / 7 * (x2 - x1)) / 16 - 0.5  # f(x, y) = x, in cells
    np.testing.assert_allclose(scene.crops["roi_align"], np.tile(right, (7, 1)), atol=1e-5)
    assert np.abs(scene.crops["roi_pool"] - right).max() > 0.5


# ---------------------------------------------------------------- the figure

CASES = {
    "teaching": (toys, TEACHING_ROI, {}),
    "stride 4": (toys, TEACHING_ROI, {"stride": 4}),
    "stride 8": (toys, TEACHING_ROI, {"stride": 8, "detail": "roi_warp"}),
    "stride 32": (toys, TEACHING_ROI, {"stride": 32}),
    "stride 64": (toys, TEACHING_ROI, {"stride": 64, "aligned": False}),
    "tiny": (toys, (100.3, 90.2, 104.1, 93.7), {}),
    "empty": (toys, (100.0, 100.0, 100.0, 100.0), {"sampling_ratio": 0}),
    "border": (toys, (-30.5, -12.2, 70.3, 60.4), {"bin": (6, 6)}),
    "outside": (toys, (500.0, 500.0, 560.0, 580.0), {}),
    "14 bins": (toys, TEACHING_ROI, {"output_size": 14, "detail": "roi_pool"}),
    "oblong": (lambda: RAMP, TEACHING_ROI, {"output_size": (3, 9), "sampling_ratio": 0}),
    "two": (lambda: -1234.5 * RAMP, TEACHING_ROI, {"ops": ("roi_pool", "roi_align")}),
    "one": (toys, TEACHING_ROI, {"ops": "roi_pool", "stride": 4}),
}


@pytest.fixture(scope="module", params=CASES)
def figure(request: pytest.FixtureRequest) -> Figure:
    picture, roi, options = CASES[request.param]
    figure = compare_crops(picture(), roi, **options)
    figure.canvas.draw()
    return figure


def test_no_words_lie_over_others_or_over_the_edge(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in figure.axes[0].texts]
    assert len(boxes) > 10
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= 900 and box.y0 >= 0 and box.y1 <= figure.bbox.height, text
    for (text, box), (other, other_box) in combinations(boxes, 2):
        shared_x = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
        shared_y = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
        assert shared_x <= 0.5 or shared_y <= 0.5, (text, other)


def test_it_is_as_wide_as_a_notebook_and_its_words_are_no_smaller_than_ten_pixels(figure: Figure) -> None:
    with Image.open(io.BytesIO(figure.png())) as image:
        assert image.size == (900, 756)
    assert min(text.get_fontsize() * figure.dpi / 72 for text in figure.axes[0].texts) > 10


def test_the_numbers_stand_in_the_figure_in_its_text_and_in_its_description() -> None:
    figure = compare_crops(toys(), TEACHING_ROI)
    written = [text.get_text() for text in figure.axes[0].texts]
    for name, title in (("roi_pool", "RoIPool"), ("roi_warp", "RoIWarp"), ("roi_align", "RoIAlign")):
        line = f"{title} {alignment_error(name, TEACHING_ROI)}"
        assert line in written and line in figure.summary
        assert str(alignment_error(name, TEACHING_ROI)) in figure.alt
    assert "RoIPool reads (80, 48) to (224, 192)" in figure.alt
    assert "RoIPool: rounded to 80..224 x 48..192 px" in written
    assert "RoIAlign: read as it is, nothing rounded" in written


def test_the_enlarged_bin_says_what_the_bin_is() -> None:
    scene = make_scene(as_source(RAMP, 16), TEACHING_ROI, detail="roi_align", bin=(2, 3))
    written = " ".join(w.text for w, _ in draw(scene).sheet.marks if hasattr(w, "text"))
    assert "RoIAlign, bin (2, 3) enlarged" in written
    assert f"the mean of its 4 points, {scene.crops['roi_align'][2, 3]:.3g}" in written
    pooled = make_scene(as_source(RAMP, 16), TEACHING_ROI, detail="roi_pool", bin=(2, 3))
    written = " ".join(w.text for w, _ in draw(pooled).sheet.marks if hasattr(w, "text"))
    assert f"the largest of its 6 cells, {pooled.crops['roi_pool'][2, 3]:.3g}" in written


def test_a_notebook_shows_it_without_pyplot() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = compare_crops(toys(), TEACHING_ROI)
    data, about = formatters.DisplayFormatter().format(figure)
    assert data["text/plain"] == figure.summary
    assert data["image/png"].startswith("iVBOR")  # PNG, in base64
    assert about["image/png"] == {"width": 900, "height": 756, "alt": figure.alt}


def test_the_svg_says_what_the_figure_says(figure: Figure) -> None:
    scene = make_scene(as_source(toys(), 16), TEACHING_ROI)
    svg = as_svg(draw(scene).sheet, words(scene))
    root = ElementTree.fromstring(svg)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [text.get_text() for text in compare_crops(toys(), TEACHING_ROI).axes[0].texts]
    assert root.attrib["aria-label"] == words(scene) and root.attrib["viewBox"] == "0 0 900 756"
    assert len(svg) < 120_000  # of which the photo is half: it is sent at every movement of the mouse


def test_words_that_mean_something_to_html_are_escaped() -> None:
    scene = make_scene(as_source(toys(), 16), TEACHING_ROI)
    svg = as_svg(draw(scene).sheet, '<script>"&')
    assert ElementTree.fromstring(svg).attrib["aria-label"] == '<script>"&'


def test_the_colours_are_told_apart_with_every_colour_vision() -> None:
    # Vienot, Brettel and Mollon (1999), linear RGB as a protanope and a deuteranope see it.
    protan = [[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]]
    deutan = [[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]]
    for vision in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = [vision @ np.array(to_rgb(colour)) ** 2.2 for colour in COLOURS.values()]
        for one, other in combinations(seen, 2):
            assert np.abs(np.clip(one, 0, 1) ** (1 / 2.2) - np.clip(other, 0, 1) ** (1 / 2.2)).max() > 0.2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roi": (float("nan"), 0, 10, 10)}, "x1 is nan, which is no place"),
        ({"roi": (0, 0, 10, float("inf"))}, "y2 is inf"),
        ({"roi": (20, 0, 10, 10)}, "inside out"),
        ({"roi": (0, 0, 10)}, "this one has 3 numbers"),
        ({"ops": ("roi_pool", "roi_algn")}, "did you mean 'roi_align'"),
        ({"ops": ()}, "ops names operations"),
        ({"ops": ("roi_pool", "roi_pool")}, "each once"),
        ({"ops": ("roi_pool_loop",)}, "ops names operations"),
        ({"output_size": 0}, "output_size: 0"),
        ({"output_size": (7, -1)}, "output_size"),
        ({"stride": 0}, "stride is the pixels a cell"),
        ({"sampling_ratio": 1.5}, "sampling_ratio: 1.5"),
        ({"detail": "roi_crop"}, "none of the operations that are shown"),
        ({"bin": (7, 0)}, r"bin \(7, 0\) is outside the 7 x 7 bins"),
        ({"channel": 1, "picture_or_map": RAMP}, "the map has 1"),
        ({"picture_or_map": torch.zeros(1, 3, 20, 20)}, "of one image at a time"),
        ({"picture_or_map": torch.zeros(3, 20, 20) + 2}, "float from 0 to 1"),
        ({"picture_or_map": np.zeros((20, 20, 3), np.uint8)}, r"this one \(20, 20, 3\).*permute\(2, 0, 1\)"),
        ({"picture_or_map": RAMP * float("nan")}, "not finite"),
        ({"picture_or_map": torch.zeros(0, 5)}, r"this one is \(0, 5\)"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    given = {"picture_or_map": RAMP, "roi": TEACHING_ROI} | change
    with pytest.raises(ValueError, match=message):
        compare_crops(**given)
