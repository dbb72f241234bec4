"""Bad input of the RoI operations, names, and determinism."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from minimrcnn import roi_ops
from minimrcnn.roi_ops import align
from minimrcnn.roi_ops.named import OPERATIONS
from tests.roi_problems import gradient

FEATURES = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 1.0, 2, 20, 15], [1, 3, 3, 9, 9]])
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=OPERATIONS)
def run(request):
    """Each operation, and each loop."""
    return roi_ops.operation(request.param)


def changed(row: int, column: int, value: float) -> torch.Tensor:
    """ROIS with one number replaced."""
    rois = ROIS.clone()
    rois[row, column] = value
    return rois


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        (changed(1, 2, NAN), r"rois\[1\]: \[3.0, nan, 9.0, 9.0\].*finite"),
        (changed(0, 3, INF), r"rois\[0\]:.*inf.*finite"),
        (changed(0, 3, -INF), r"rois\[0\]:.*inf.*finite"),
        (changed(1, 0, 2), r"rois\[1\]: picture 2, but the batch has pictures 0 to 1"),
        (changed(0, 0, -1), r"rois\[0\]: picture -1"),
        (changed(0, 0, NAN), r"rois\[0\]: picture nan"),
        (ROIS.long(), r"rois: dtype torch.int64.*\.float"),
        (ROIS[:, 1:], r"rois: shape \(2, 4\); want \(R, 5\)"),
        (ROIS[0], r"rois: shape \(5,\)"),
        (ROIS.to("meta"), r"rois: on meta, the features on cpu"),
        ([ROIS[:, 1:]], r"boxes of 1 pictures, but the batch has 2"),
        ([ROIS[:, 1:], ROIS], r"rois\[1\]: shape \(2, 5\); want \(K, 4\)"),
        ([ROIS[:, 1:].long()] * 2, r"rois: dtype torch.int64"),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], r"want a tensor \(R, 5\), or a list of boxes"),
        (None, r"rois: None; want a tensor"),
    ],
)
def test_bad_rois(run, rois, message):
    with pytest.raises(ValueError, match=message):
        run(FEATURES, rois, 7, 0.25)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[0], r"features: \(3, 6, 8\); want a tensor \(B, C, H, W\)"),
        ([FEATURES], r"features: list; want a tensor"),
        (FEATURES.to(torch.uint8), r"features: dtype torch.uint8.*\.float"),
        (FEATURES[:, :, :0], r"a map of 0 x 8 cells has no cell"),
        (torch.empty(2, 3, 2**15, 2**15, device="meta"), r"int32: split the batch"),
    ],
)
def test_bad_features(run, features, message):
    with pytest.raises(ValueError, match=message):
        run(features, ROIS, 7, 0.25)


@pytest.mark.parametrize("output_size", [0, -1, 7.0, (7, 0), (7,), (7, 7, 7)])
def test_bad_output_size(run, output_size):
    with pytest.raises(ValueError, match=r"output_size: .*want a whole number of bins above 0"):
        run(FEATURES, ROIS, output_size, 0.25)


@pytest.mark.parametrize("scale", [0, -0.25, NAN, INF])
def test_bad_spatial_scale(run, scale):
    with pytest.raises(ValueError, match=r"spatial_scale: .*1/16 for a stride of 16"):
        run(FEATURES, ROIS, 7, scale)


@pytest.mark.parametrize("name", ["roi_align", "roi_warp", "roi_align_loop", "roi_warp_loop"])
def test_bad_sampling(name):
    run = roi_ops.operation(name)
    with pytest.raises(ValueError, match=r"sampling_ratio: 1\.5"):
        run(FEATURES, ROIS, 7, 0.25, 1.5)
    with pytest.raises(ValueError, match=r"no reduce 'maximum': did you mean 'max'\? there are average, max"):
        run(FEATURES, ROIS, 7, 0.25, reduce="maximum")
    for negative in (-1, -7):  # adaptive, as 0 is
        assert torch.equal(run(FEATURES, ROIS, 2, 0.25, negative), run(FEATURES, ROIS, 2, 0.25, 0))


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match=r"no operation 'roi_alain': did you mean 'roi_align'\? there are"):
        roi_ops.operation("roi_alain")
    with pytest.raises(ValueError, match=r"no operation 'RoIPool'"):
        roi_ops.operation("RoIPool")
    with pytest.raises(ValueError, match=r"no implementation 'tritn': did you mean 'triton'\?"):
        roi_ops.roi_align(FEATURES, ROIS, 7, 0.25, implementation="tritn")


def test_an_implementation_that_only_averages_says_so():
    for implementation in ("torchvision", "triton"):
        with pytest.raises(ValueError, match=f"reduce='max': {implementation} averages only"):
            roi_ops.roi_align(FEATURES, ROIS, 7, 0.25, reduce="max", implementation=implementation)


def test_without_triton_its_name_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(align, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed; choose 'pytorch'"):
        roi_ops.roi_align(FEATURES, ROIS, 7, 0.25, implementation="triton")


def test_the_package_imports_without_triton():
    """There is none for Windows and macOS."""
    code = "import sys; sys.modules['triton'] = None; import minimrcnn.roi_ops"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- pyramid -------------------------------------------------------------------------------------------

LEVELS = [FEATURES, FEATURES[:, :, ::2, ::2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "features: 0 levels, strides: 2"),
        ({"strides": (4,)}, "features: 2 levels, strides: 1"),
        ({"features": [FEATURES, FEATURES.double()]}, r"features\[1\]: .*float64.*want the pictures"),
        ({"features": [FEATURES, FEATURES[:, :2]]}, r"features\[1\]: \(2, 2, 6, 8\)"),
        ({"features": [FEATURES, FEATURES[0]]}, r"features\[1\]: \(3, 6, 8\); want a tensor"),
        ({"boxes": changed(1, 2, NAN)[:, 1:]}, r"rois\[1\]: .*finite"),
        ({"boxes": ROIS}, r"boxes \(2, 5\)"),
        ({"batch": torch.tensor([0, 2])}, r"rois\[1\]: picture 2"),
        ({"batch": torch.tensor([0])}, r"batch \(1,\)"),
        ({"levels": torch.tensor([0, 2])}, "levels: from 0 to 2, but the pyramid has levels 0 to 1"),
        ({"levels": torch.tensor([-1, 0])}, "levels: from -1 to 0"),
        ({"output_size": 0}, "output_size: 0"),
        ({"sampling_ratio": 0.5}, r"sampling_ratio: 0\.5"),
    ],
)
def test_bad_pyramid(change, message):
    good = {
        "features": LEVELS,
        "boxes": ROIS[:, 1:],
        "batch": torch.tensor([0, 1]),
        "levels": torch.tensor([0, 1]),
        "strides": (4, 8),
        "output_size": 7,
        "sampling_ratio": 2,
        "aligned": False,
    }
    assert roi_ops.pyramid_roi_align(**good).shape == (2, 3, 7, 7)
    with pytest.raises(ValueError, match=message):
        roi_ops.pyramid_roi_align(**{**good, **change})


# -- determinism ---------------------------------------------------------------------------------------


@pytest.fixture
def deterministic():
    """torch's switch, for one test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{}, {"sampling_ratio": 0}, {"reduce": "max"}])
@pytest.mark.parametrize("name", ["roi_pool", "roi_warp", "roi_align"])
def test_deterministic_algorithms_give_the_same_bits(name, options, deterministic):
    if name == "roi_pool" and options:
        options = {}
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 16, 24, 24, generator=generator)
    corner, size = torch.rand(2, 200, 2, generator=generator) * 60
    rois = torch.cat([torch.randint(2, (200, 1), generator=generator).float(), corner, corner + size], dim=1)
    first = gradient(roi_ops.operation(name), features, rois, 7, 0.25, **options)
    again = gradient(roi_ops.operation(name), features, rois, 7, 0.25, **options)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
