"""The machine code of the Triton kernels, compiled for three GPUs on a machine that has none."""

from __future__ import annotations

import functools
import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux alone")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is set: there is nothing to compile", allow_module_level=True)

from minimrcnn.roi_ops import triton_code

pytestmark = pytest.mark.slow
GPUS = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
DTYPES = [torch.float32, torch.bfloat16]
compiled = functools.cache(triton_code.compile_kernel)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [7, 14])
def test_forward_loads_features_128_bits_at_once(gpu, dtype, bins):
    code = compiled("forward", dtype, GPUS[gpu], bins=bins)
    # 16 taps a bin, each for 8 channels a thread, all as wide as a load can be; the rest reads the RoI: its
    # level, its picture and its 4 corners.
    taps = 16 * 8 * dtype.itemsize // 16
    assert code.count("LDG.E.128") == taps
    assert code.count("LDG") == taps + 6
    assert code.count("STG.E.128") == code.count("STG") > 0


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_sends_vectors_and_waits_for_nothing(gpu, dtype):
    code = compiled("scatter", dtype, GPUS[gpu])
    assert code.count("MEMBAR") == 0
    assert code.count("ATOM") == code.count("ATOMG") == 0  # these return the old value
    if gpu == "sm_80":  # has no vector reduction
        assert code.count("RED.E.ADD.F32") == 32
    else:
        assert code.count("REDG.E.ADD.F32x4") == 8
        assert code.count("REDG.E.ADD.F32") == code.count("RED") == 0
    assert code.count("LDG.E.128") == (8 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_needs_no_atomics(gpu, dtype):
    code = compiled("gather", dtype, GPUS[gpu])
    for name in ("RED", "REDG", "ATOM", "ATOMG", "MEMBAR", "BAR"):
        assert code.count(name) == 0, name
    assert code.count("LDG.E.128") == code.count("STG.E.128") == (8 if dtype == torch.float32 else 4)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kernel", triton_code.KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_stays_in_registers(gpu, kernel, dtype):
    code = compiled(kernel, dtype, GPUS[gpu])
    assert code.spilled == 0
    assert code.count("LDL") == code.count("STL") == 0
    assert code.registers <= 128


def test_registers_suffice_for_other_sampling_ratios_and_crops():
    for options in ({"sampling_ratio": 4}, {"sampling_ratio": 1}, {"sampling_ratio": 0}, {"bins": 14}):
        code = compiled("forward", torch.float32, GPUS["sm_90"], **options)
        assert (code.spilled, code.registers <= 128) == (0, True), options


def test_count_reads_whole_names_and_skips_predicates():
    code = triton_code.MachineCode(("@!P0 LDG.E.128 R4, [R2]", "LDG.E R1, [R2]", "LDGSTS R3"), "", 8, 0)
    assert [code.count(name) for name in ("LDG.E.128", "LDG.E", "LDG", "STG")] == [1, 2, 2, 0]
