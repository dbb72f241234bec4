"""The Triton RoIAlign against torchvision's operator in float64, forward and both ways backward.

Runs where the kernels can: compiled on a GPU, or in Triton's interpreter, for which TRITON_INTERPRET=1
must be set before Python starts. test_roi_triton.py starts the second in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch
import torchvision
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux alone")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip(
        "no GPU, and TRITON_INTERPRET=1 is not set: test_roi_triton.py runs these interpreted",
        allow_module_level=True,
    )

from minimrcnn import roi_ops  # noqa: E402
from minimrcnn.roi_ops import triton_align  # noqa: E402
from minimrcnn.roi_ops.triton_align import pyramid_roi_align_triton  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
STRIDES = (4, 8, 16, 32)
# The interpreter takes milliseconds a program: small tiles leave few of them over the small maps.
SMALL = {"channels": 256, "cells": 4, "tile": (4, 4), "warps": 1}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """One program a row of cells in the gather."""
    monkeypatch.setitem(triton_align.TUNING, "gather", SMALL)


def problem(seed: int, rois: int = 4, channels: int = 5, levels: int = 2, inverted: bool = False) -> tuple:
    """Maps (2, C, ., .), boxes (R, 4), batch (R,), levels (R,): inside, over the border, tiny and large."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(9, 7), (5, 6), (3, 4), (2, 3)][:levels]
    maps = [torch.randn(2, channels, h, w, generator=generator) for h, w in sizes]
    batch = torch.randint(2, (rois,), generator=generator)
    level = torch.arange(rois) % levels
    # In cells of the RoI's own level, then in pixels.
    corner = torch.rand(rois, 2, generator=generator) * 9 - 3
    size = torch.rand(rois, 2, generator=generator) * 8 - (4 if inverted else 0)
    stride = torch.tensor(STRIDES)[level, None]
    return maps, torch.cat([corner, corner + size], dim=1) * stride, batch, level


def reference(maps: list[Tensor], boxes: Tensor, batch: Tensor, level: Tensor, *options) -> Tensor:
    """torchvision's operator, level by level: options are (output_size, sampling_ratio, aligned)."""
    size, sampling_ratio, aligned = options
    rois = torch.cat([batch[:, None], boxes], dim=1).to(maps[0].dtype)
    out = rois.new_zeros(len(rois), maps[0].shape[1], *size)
    for i, map_ in enumerate(maps):
        rows = (level == i).nonzero()[:, 0]
        crops = torchvision.ops.roi_align(map_, rois[rows], size, 1 / STRIDES[i], sampling_ratio, aligned)
        out = out.index_copy(0, rows, crops)
    return out


def both(problem: tuple, options: tuple, method: str, dtype: torch.dtype = torch.float32, layout=None):
    """Crops and the maps' gradients: ours in `dtype`, and the reference in float64 from the same numbers."""
    maps, boxes, batch, level = problem
    maps = [m.to(dtype) for m in maps]
    exact = [m.double().requires_grad_() for m in maps]
    layout = layout or torch.channels_last
    ours = [m.clone().to(DEVICE, memory_format=layout).requires_grad_() for m in maps]
    size = options[0] if isinstance(options[0], tuple) else (options[0],) * 2
    wanted = reference(exact, boxes, batch, level, size, *options[1:])
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (wanted * weight.double()).sum().backward()
    strides = STRIDES[: len(maps)]
    rois = (boxes.to(DEVICE), batch.to(DEVICE), level.to(DEVICE))
    crops = pyramid_roi_align_triton(ours, *rois, strides, *options, backward=method)
    crops.backward(weight.to(DEVICE))
    return (crops, [m.grad for m in ours]), (wanted, [m.grad for m in exact])


def check(got: tuple, wanted: tuple, rtol: float = 0, atol: float = 4e-6) -> None:
    """Crops and gradients agree."""
    for mine, theirs in zip([got[0], *got[1]], [wanted[0], *wanted[1]], strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine.double().cpu(), theirs, rtol=rtol, atol=atol)


# Each of the three choices with each value of the other two, in half as many runs as all of them together.
@pytest.mark.parametrize(
    ("sampling_ratio", "aligned", "method"),
    [
        (1, False, "scatter"),
        (1, True, "gather"),
        (2, True, "scatter"),
        (2, False, "gather"),
        (0, False, "scatter"),
        (0, True, "gather"),
    ],
)
def test_equals_torchvision(sampling_ratio, aligned, method):
    # Some aligned RoIs have their corners swapped; with the adaptive ratio torchvision's CPU operator fails.
    rois = problem(sampling_ratio, inverted=aligned and sampling_ratio > 0)
    check(*both(rois, (2, sampling_ratio, aligned), method))


@pytest.mark.parametrize("method", ["scatter", "gather"])
def test_the_adaptive_ratio_takes_no_points_in_an_inverted_roi(method):
    maps = [m.to(DEVICE).requires_grad_() for m in problem(2)[0][:1]]
    boxes = torch.tensor([[20.0, 24, 4, 8], [4, 24, 20, 8]], device=DEVICE)
    index = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    crops = pyramid_roi_align_triton(maps, boxes, index, index, STRIDES[:1], 2, 0, True, backward=method)
    crops.sum().backward()
    assert not crops.any() and not maps[0].grad.any()


@pytest.mark.parametrize("sampling_ratio", [3, 4])
def test_other_sampling_ratios(sampling_ratio):
    check(*both(problem(7, rois=2), (2, sampling_ratio, False), "scatter"))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 9), (7, 7)])
def test_crops_of_any_size(size):
    """Nine bins in a row are more than a program takes at once, and seven are no power of two."""
    check(*both(problem(3, rois=1, levels=1), (size, 2, False), "gather"))


def test_many_rows_of_bins_are_shared_by_programs(monkeypatch):
    monkeypatch.setitem(triton_align.TUNING["forward"], "rows", 2)  # 2 + 2 + 1
    monkeypatch.setitem(triton_align.TUNING["scatter"], "strips", 3)
    check(*both(problem(4, rois=2), ((5, 2), 2, False), "scatter"))


@pytest.mark.parametrize("levels", [1, 4])
def test_any_number_of_levels(levels):
    for method in ("scatter", "gather"):
        check(*both(problem(5, rois=4, levels=levels), (2, 2, False), method))


@pytest.mark.parametrize("channels", [1, 8, 37])
def test_any_number_of_channels(channels, monkeypatch):
    for kernel in ("forward", "scatter", "gather"):
        monkeypatch.setitem(triton_align.TUNING[kernel], "channels", 16)  # 37 = 16 + 16 + 5
    for method in ("scatter", "gather"):
        check(*both(problem(6, rois=2, channels=channels), (2, 2, False), method))


# float16 has 11 bits, and is rounded once: half a unit is 2**-12. bfloat16 has 8, and the interpreter cuts
# the rest off where a GPU rounds: a whole unit is 2**-7.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("method", ["scatter", "gather"])
def test_half_precision_keeps_its_dtype_and_sums_in_float32(dtype, rtol, method):
    got, wanted = both(problem(8), (3, 2, False), method, dtype)
    assert got[0].dtype == dtype and all(g.dtype == dtype for g in got[1])
    check(got, wanted, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout(layout):
    got, wanted = both(problem(9), (2, 2, False), "scatter", layout=layout)
    check(got, wanted)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


def test_a_view_of_a_larger_map():
    maps, boxes, batch, level = problem(10)
    wide = [torch.nn.functional.pad(m, (1, 2, 1, 0)).to(DEVICE) for m in maps]
    views = [m[:, :, 1:, 1:-2] for m in wide]
    rois = (boxes.to(DEVICE), batch.to(DEVICE), level.to(DEVICE))
    crops = pyramid_roi_align_triton(views, *rois, STRIDES[:2], 2, 2, False)
    torch.testing.assert_close(
        crops.cpu(), reference(maps, boxes, batch, level, (2, 2), 2, False), rtol=0, atol=4e-6
    )


# A map of 9 x 7 cells of 4 px. Corners are whole numbers and bins powers of two, so that both sides see the
# same positions: at one cell outside the map RoIAlign jumps to 0.
CORNERS = {
    "around the map": [-4.0, -4, 32, 40],
    "on its border": [0.0, 0, 28, 36],
    "one cell outside": [-8.0, -8, -4, -4],
    "far outside": [400.0, 400, 500, 480],
    "far outside on the left": [-500.0, -400, -420, -300],
    "across the right border": [16.0, 4, 60, 20],
    "empty": [8.0, 8, 8, 8],
    "inside out": [20.0, 24, 4, 8],
    "one cell": [12.0, 12, 16, 16],
    "long and thin": [1.0, 10, 27, 11],
    "far larger than the map": [-200.0, -100, 300, 260],
}


@pytest.mark.parametrize(("aligned", "method"), [(True, "scatter"), (False, "gather")])
def test_strange_rois(aligned, method):
    maps = [problem(11)[0][0]]
    boxes = torch.tensor(list(CORNERS.values()))
    index = torch.zeros(len(boxes), dtype=torch.int64)
    check(*both((maps, boxes, index, index), (2, 2, aligned), method), atol=2e-5)


@pytest.mark.parametrize("method", ["scatter", "gather"])
def test_a_dot_has_all_its_bins_in_one_cell(method):
    """An aligned RoI of no size: 8 x 8 bins at one point, all of which one cell hears of."""
    maps = [problem(12)[0][0]]
    boxes, index = torch.tensor([[9.0, 13, 9, 13], [9, 13, 9.0001, 13.0001]]), torch.tensor([0, 1])
    check(*both((maps, boxes, index, index * 0), (8, 1, True), method), atol=2e-5)


def test_no_rois():
    maps, boxes, batch, level = problem(13)
    for method in ("scatter", "gather"):
        ours = [m.to(DEVICE).requires_grad_() for m in maps]
        none = (boxes[:0].to(DEVICE), batch[:0].to(DEVICE), level[:0].to(DEVICE))
        crops = pyramid_roi_align_triton(ours, *none, STRIDES[:2], 7, 2, False, backward=method)
        assert crops.shape == (0, 5, 7, 7)
        crops.sum().backward()
        assert all(m.grad.shape == m.shape and not m.grad.any() for m in ours)


def test_cells_that_no_roi_reads_get_zero_and_not_what_lay_in_memory():
    maps, boxes, batch, level = problem(14, rois=1)
    got, wanted = both((maps, boxes, batch, level), (2, 2, False), "gather")
    check(got, wanted)
    assert not got[1][1].any()  # the only RoI is on level 0


def test_gather_lists_every_roi_once_and_in_order(monkeypatch):
    """More RoIs than a program of the list kernel looks at together, and tiles over the border of the map."""
    monkeypatch.setitem(triton_align.TUNING["list"], "rois", 4)
    got, wanted = both(problem(15, rois=11), (1, 1, False), "gather")
    check(got, wanted)


def test_gather_repeats_bit_for_bit_and_torch_asks_for_it():
    asked = []
    original = triton_align.gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_align, "gather", lambda *a: (asked.append(1), original(*a))[1])
        torch.use_deterministic_algorithms(True)
        try:
            first, _ = both(problem(16, rois=3), (2, 2, False), "auto")
            second, _ = both(problem(16, rois=3), (2, 2, False), "auto")
        finally:
            torch.use_deterministic_algorithms(False)
        assert asked == [1, 1]
        both(problem(16, rois=1), (2, 2, False), "auto")
        assert asked == [1, 1]  # and only then
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a, b)


def test_a_map_beyond_2_to_the_31_numbers():
    """Offsets of 32 bits would wrap. The map is never filled: only the pages that are touched exist."""
    side = 50_000  # 2.5e9 numbers in float16: 5 GB of addresses
    try:
        map_ = torch.empty(1, 1, side, side, dtype=torch.float16, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no room for the map: {error}")
    ramp = torch.arange(64, dtype=torch.float16, device=DEVICE)
    map_[0, 0, -64:, -64:] = ramp[:, None]
    low = side - 40.0
    boxes, index = (
        torch.tensor([[low, low, low + 8, low + 8]], device=DEVICE),
        torch.zeros(1, dtype=torch.int64),
    )
    index = index.to(DEVICE)
    crops = pyramid_roi_align_triton([map_], boxes, index, index, (1,), 2, 2, False)
    # Row side - 40 is row 24 of the ramp; the bins' centres are 2 and 6 cells farther down.
    assert crops[0, 0].tolist() == [[26, 26], [30, 30]]


def test_opcheck():
    maps, boxes, batch, level = problem(17, rois=2, channels=1)
    maps = [m.to(DEVICE, memory_format=torch.channels_last).requires_grad_() for m in maps]
    rois = (boxes.to(DEVICE), batch.to(DEVICE), level.to(DEVICE), [0.25, 0.125])
    torch.library.opcheck(triton_align.roi_align_op, (maps, *rois, [1, 2], 1, False, "scatter"))
    crops = torch.randn(2, 1, 1, 2, device=DEVICE)
    sizes = [n for m in maps for n in m.shape[2:]]
    for method in ("scatter", "gather"):
        torch.library.opcheck(triton_align.roi_align_backward_op, (crops, *rois, 2, sizes, 1, False, method))


def test_the_graph_is_not_broken_by_it():
    maps, boxes, batch, level = problem(18, rois=2)
    rois = (boxes.to(DEVICE), batch.to(DEVICE), level.to(DEVICE))

    def loss(maps: list[Tensor]) -> Tensor:
        return pyramid_roi_align_triton(maps, *rois, STRIDES[:2], 2, 2, False).square().sum()

    backend = "aot_eager" if INTERPRETED else "inductor"
    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        ours = [m.to(DEVICE).requires_grad_() for m in maps]
        function(ours).backward()
        grads.append([m.grad for m in ours])
    for eager, traced in zip(*grads, strict=True):
        assert bool(eager.any())
        torch.testing.assert_close(eager, traced, rtol=0, atol=1e-6)


def test_under_autocast_it_takes_what_a_convolution_gives():
    maps, boxes, batch, level = problem(19, rois=2, levels=1)
    rois = (boxes.to(DEVICE), batch.to(DEVICE), level.to(DEVICE))
    conv = torch.nn.Conv2d(5, 5, 1).to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        features = conv(maps[0].to(DEVICE))
        crops = pyramid_roi_align_triton([features], *rois, STRIDES[:1], 2, 2, False)
        assert features.dtype == crops.dtype == torch.bfloat16
        crops.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32 and bool(conv.weight.grad.any())


def test_by_name():
    maps, boxes, batch, _ = problem(20, rois=2, levels=1)
    rois = torch.cat([batch[:, None], boxes], dim=1).to(DEVICE)
    crops = roi_ops.roi_align(maps[0].to(DEVICE), rois, 2, 0.25, 2, implementation="triton")
    wanted = torchvision.ops.roi_align(maps[0], rois.cpu(), 2, 0.25, 2)
    torch.testing.assert_close(crops.cpu(), wanted, rtol=0, atol=4e-6)
