"""What rounding costs in pixels: RoIPool's staircase, RoIAlign's flat line."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minimrcnn import roi_ops
from minimrcnn.show import alignment_curve, alignment_error
from minimrcnn.show.lessons import TEACHING_ROI

ROUNDING = ("roi_pool", "roi_warp")
corner = st.floats(-200, 600, width=32)
side = st.floats(1, 300, width=32)
strides = st.sampled_from([4, 8, 16, 32])
bins = st.integers(1, 9)


def round_half_up(value: float) -> int:
    """To the nearest whole number as C does it, for what is not negative."""
    return int(value + 0.5)


@given(corner, corner, side, side, strides, bins, st.sampled_from([0, 1, 2, 3, 4]))
def test_roi_align_is_exact_on_a_ramp(
    x: float, y: float, width: float, height: float, stride: int, output_size: int, ratio: int
) -> None:
    roi = x, y, x + width, y + height
    error = alignment_error(
        "roi_align", roi, output_size=output_size, stride=stride, sampling_ratio=ratio, aligned=True
    )
    assert max(abs(error.x), abs(error.y), error.worst) < 1e-3  # pixels, in float32


@given(corner, corner, side, side, strides)
def test_without_aligned_it_is_half_a_cell_off_wherever_it_is(
    x: float, y: float, width: float, height: float, stride: int
) -> None:
    roi = x, y, x + max(width, stride), y + max(height, stride)  # below a cell the RoI is made larger
    error = alignment_error("roi_align", roi, stride=stride, aligned=False)
    assert (error.x, error.y) == pytest.approx((stride / 2, stride / 2), abs=2e-3)


@given(st.floats(0, 500), st.floats(1, 300), strides, st.sampled_from(ROUNDING))
def test_rounding_moves_the_crop_by_what_its_two_sides_are_moved(
    x: float, width: float, stride: int, name: str
) -> None:
    x, width = round(x, 1) + 0.03, round(width, 1)  # away from a tie, which float32 may break either way
    first, last = round_half_up(x / stride), round_half_up((x + width) / stride)
    past = max(last, first) + 1  # both cells belong to it
    read = (first + past) / 2 * stride
    error = alignment_error(name, (x, 10, x + width, 40), stride=stride, sampling_ratio=2)
    assert error.x == pytest.approx(read - (x + width / 2), abs=2e-3)


@pytest.mark.parametrize("stride", [4, 16, 32])
def test_the_staircase_and_the_flat_line(stride: int) -> None:
    roi = 50.0, 50.0, 50.0 + 7 * stride, 50.0 + 7 * stride
    shifts = torch.linspace(0, 2 * stride, 401)
    for name in ROUNDING:
        error = alignment_curve(name, roi, shifts, stride=stride)
        # Half a cell of both roundings' making, and up to half a cell to either side of it.
        assert error.mean() == pytest.approx(stride / 2, abs=0.02 * stride)
        assert (error - stride / 2).abs().max() == pytest.approx(stride / 2, abs=0.01 * stride)
        steps = error.diff()
        jumps = steps > stride / 2
        assert int(jumps.sum()) == 2  # one a cell
        torch.testing.assert_close(steps[~jumps], -shifts.diff()[~jumps], atol=2e-3, rtol=0)
    flat = alignment_curve("roi_align", roi, shifts, stride=stride)
    assert flat.abs().max() < 1e-3
    late = alignment_curve("roi_align", roi, shifts, stride=stride, aligned=False)
    torch.testing.assert_close(late, torch.full_like(late, stride / 2), atol=2e-3, rtol=0)


def test_the_curve_is_the_error_of_a_shifted_roi() -> None:
    x1, y1, x2, y2 = TEACHING_ROI
    for name in ("roi_pool", "roi_warp", "roi_align"):
        curve = alignment_curve(name, TEACHING_ROI, torch.tensor([0.0, 3.5, -20.25]))
        for shift, value in zip((0.0, 3.5, -20.25), curve, strict=True):
            error = alignment_error(name, (x1 + shift, y1, x2 + shift, y2))
            assert float(value) == pytest.approx(error.x, abs=1e-3)


def test_the_teaching_roi() -> None:
    # Cells 5..13 are read of 5.475..13.3375: from 80 to 224, and their middle is 152, not 150.5.
    pool = alignment_error("roi_pool", TEACHING_ROI)
    assert (pool.x, pool.y) == pytest.approx((1.5, 3.75), abs=1e-3)
    assert pool.by_bin.shape == (2, 7, 7)
    assert str(pool) == "x +1.50, y +3.75, worst 12.10"
    assert str(alignment_error("roi_align", TEACHING_ROI)) == "x 0.00, y 0.00, worst 0.00"


def test_a_function_of_ones_own() -> None:
    def transposed(features: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
        return torchvision.ops.roi_align(features, rois, output_size, spatial_scale, 2, True).mT

    right = alignment_error(
        lambda *args: torchvision.ops.roi_align(*args, sampling_ratio=2, aligned=True), TEACHING_ROI
    )
    assert right.worst < 1e-3
    wrong = alignment_error(transposed, (100.0, 50.0, 200.0, 90.0))
    assert wrong.worst > 50  # x and y swapped are not off by a little
    loop = alignment_error(roi_ops.roi_pool_loop, TEACHING_ROI, output_size=3)
    assert loop.x == pytest.approx(alignment_error("roi_pool", TEACHING_ROI, output_size=3).x, abs=1e-3)


def test_oblong_crops_and_borders() -> None:
    error = alignment_error("roi_align", TEACHING_ROI, output_size=(3, 5))
    assert error.by_bin.shape == (2, 3, 5) and error.worst < 1e-3
    over_the_edge = alignment_error("roi_align", (-100, 16, 60, 80), output_size=4, size=(10, 10))
    assert over_the_edge.by_bin[0, :, :2].isnan().all()  # bins of which nothing, or not all, is inside
    assert over_the_edge.by_bin[0, :, 3].abs().max() < 1e-3
    outside = alignment_error("roi_pool", (1000, 1000, 1100, 1100), size=(10, 10))
    assert outside.x != outside.x and str(outside) == "no bin reads the picture"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "roialign"}, "did you mean 'roi_align'"),
        ({"roi": (float("nan"), 0, 1, 1)}, "x1 is nan"),
        ({"roi": (0, 0, float("inf"), 1)}, "x2 is inf"),
        ({"roi": (5, 0, 1, 1)}, "inside out"),
        ({"roi": (1, 2, 3)}, "this one has 3"),
        ({"output_size": 0}, "output_size: 0"),
        ({"stride": 0}, "stride is the pixels a cell"),
        ({"stride": 16.5}, "stride is the pixels a cell"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    given = {"op": "roi_align", "roi": TEACHING_ROI} | change
    with pytest.raises(ValueError, match=message):
        alignment_error(given.pop("op"), given.pop("roi"), **given)
    if "op" not in change:
        with pytest.raises(ValueError, match=message):
            alignment_curve(
                "roi_align",
                change.get("roi", TEACHING_ROI),
                torch.zeros(1),
                **{k: v for k, v in change.items() if k != "roi"},
            )
