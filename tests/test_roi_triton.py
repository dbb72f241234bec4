"""What surrounds the Triton RoIAlign: bad input, the interpreter's tests, and a package without Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux alone")

ROOT = Path(__file__).parent.parent
HALF = "gather or opcheck"  # of the tests in the interpreter, by time


@pytest.fixture(scope="module", autouse=True)
def interpreted(request: pytest.FixtureRequest) -> Iterator[list[subprocess.Popen]]:
    """A kernel is compiled or interpreted from its definition on: interpreted ones need their own processes.

    Two, with half of the tests each, while the other tests of this file run: Triton's interpreter keeps one
    core busy for minutes.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/test_roi_triton_kernels.py", "-k"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    wanted = any(item.name == "test_the_kernels_interpreted" for item in request.session.items)
    runs = [
        subprocess.Popen([*command, choice], cwd=ROOT, env=environment, **pipes)
        for choice in (HALF, f"not ({HALF})")
        if wanted
    ]
    yield runs
    for run in runs:
        run.kill()


def test_the_package_does_not_need_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"  # as if it were not installed
        "import torch, minimrcnn.model, minimrcnn.roi_ops as roi_ops\n"
        "crops = roi_ops.roi_align(torch.ones(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), 2)\n"
        "assert crops.shape == (1, 2, 2, 2) and bool((crops == 1).all())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def call(**changes):
    """The compiled kernel on good input, but for `changes`."""
    from minimrcnn.roi_ops import triton_align

    index = torch.zeros(3, dtype=torch.int64)
    arguments = {
        "features": [torch.ones(1, 2, 6, 6)],
        "boxes": torch.tensor([[0.0, 0, 8, 8]] * 3),
        "batch": index,
        "levels": index,
        "strides": (4,),
        "output_size": 2,
        "sampling_ratio": 2,
        "aligned": False,
    }
    return triton_align.pyramid_roi_align_triton(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"features: on cpu; the Triton kernel runs on CUDA.*implementation='pytorch'"),
        (
            {"features": [torch.ones(1, 2, 6, 6).double()]},
            "dtype torch.float64; the Triton kernel takes float32",
        ),
        ({"features": [torch.ones(1, 2, 6, 6)] * 5, "strides": (4,) * 5}, "features: 5 levels.*1 to 4"),
        ({"strides": (4, 8)}, "features: 1 levels, strides: 2"),
        ({"backward": "scater"}, "no backward 'scater': did you mean 'scatter'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_launched(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.slow
def test_the_kernels_interpreted(interpreted):
    for run, (output, _) in zip(interpreted, [run.communicate() for run in interpreted], strict=True):
        assert run.returncode == 0, output[-8000:]
        assert " passed" in output and "skipped" not in output
