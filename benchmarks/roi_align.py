"""The Triton RoIAlign on this machine's GPU: is it right, how long does it take, and what would be the least.

    python -m benchmarks.roi_align              check, time, write results/roi_align_<gpu>.json and .png
    python -m benchmarks.roi_align --tune       look for better block sizes (triton_align.TUNING), print them
    python -m benchmarks.roi_align --dry-run    every line on tiny maps on the CPU, in Triton's interpreter

Device time: of a CUDA graph of the call, between CUDA events, from a cold L2 cache (clocks.py).
Wall time: the clock on the wall from the first line of Python to the end of the GPU's work, and no graph.
Against torchvision at its best: NCHW in float32, one call of its operator a level, each with its RoIs ready,
nothing put together after; and as under bfloat16 autocast, with maps in channels_last. Its wall time is
MultiScaleRoIAlign's, as its models call it. Medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.clocks import Cpu, Gpu, copy_rate, wall_seconds
from benchmarks.roi_cases import CASES, STRIDES, Case, Inputs, Traffic, make_inputs, traffic

RESULTS = Path(__file__).parent / "results"
L2_RATE = 5.5e12  # bytes a second, assumed of an H200
# What is asked for on an H200: (title, must, aim); a ratio to torchvision's time unless the title says else.
GOALS = {
    "forward float32": ("forward fp32, device time, against torchvision's four launches", 3.0, 5.0),
    "forward bfloat16": ("forward bf16 channels-last, against torchvision under autocast", 8.0, 12.0),
    "backward float32": ("backward fp32, scatter, which is the default", 2.5, 6.0),
    "backward bfloat16": ("backward bf16, scatter, which is the default", 4.0, 8.0),
    "wall": ("forward + backward, all levels, wall time, 2 pictures", 4.0, 8.0),
    "deterministic": ("deterministic backward: time over the atomic one's", 1.3, 1.0),
    "share": ("forward, share of the realistic bound", 0.60, 0.85),
}


@dataclass(frozen=True)
class Setting:
    """Sizes of a run: what is measured on a GPU, and the little that a dry run does."""

    height: int = 800
    width: int = 1216
    channels: int = 256
    pictures: tuple[int, ...] = (1, 2, 8, 16)
    repeats: int = 50
    cases: tuple[Case, ...] = CASES


DRY = Setting(
    32, 64, 8, (1, 2), 1, (Case("train box", 2, 2, 0.5, True), Case("infer mask", 1, 3, 1.0, False))
)


# ---- the contestants: each makes a forward call from inputs and a case, and the backward call follows ----


def triton_side(method: str) -> Callable[[Inputs, Case], Callable[[], list[Tensor]]]:
    """Ours, with the way backward by name."""
    from minimrcnn.roi_ops.triton_align import pyramid_roi_align_triton

    def make(inputs: Inputs, case: Case) -> Callable[[], list[Tensor]]:
        rois = inputs.boxes, inputs.batch, inputs.levels, STRIDES, case.bins, 2, False
        return lambda: [pyramid_roi_align_triton(inputs.maps, *rois, backward=method)]

    return make


def torchvision_side(inputs: Inputs, case: Case) -> Callable[[], list[Tensor]]:
    """One call of torchvision's operator a level; under autocast, as bfloat16 maps need."""
    rois = torch.cat([inputs.batch[:, None], inputs.boxes], dim=1)
    by_level = [rois[inputs.levels == level].contiguous() for level in range(len(STRIDES))]

    def call() -> list[Tensor]:
        autocast = inputs.maps[0].dtype == torch.bfloat16
        with torch.autocast(inputs.maps[0].device.type, dtype=torch.bfloat16, enabled=autocast):
            return [
                torchvision.ops.roi_align(m, r, case.bins, 1 / s, 2)
                for m, r, s in zip(inputs.maps, by_level, STRIDES, strict=True)
            ]

    return call


def multi_scale_side(inputs: Inputs, case: Case, height: int, width: int) -> Callable[[], list[Tensor]]:
    """torchvision's MultiScaleRoIAlign, with everything that its models pay for."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], case.bins, 2)
    boxes = [inputs.boxes[inputs.batch == i] for i in range(len(inputs.maps[0]))]
    maps = dict(zip(("0", "1", "2", "3"), inputs.maps, strict=True))
    return lambda: [pool(maps, boxes, [(height, width)] * len(boxes))]


def with_gradients(inputs: Inputs, nchw: bool) -> Inputs:
    """The same inputs, maps as leaves of a graph; `nchw` in the layout that torchvision likes best."""
    layout = torch.contiguous_format if nchw else torch.channels_last
    maps = [m.detach().contiguous(memory_format=layout).requires_grad_() for m in inputs.maps]
    return Inputs(maps, inputs.boxes, inputs.batch, inputs.levels)


def backward_call(call: Callable[[], list[Tensor]], maps: list[Tensor]) -> Callable[[], object]:
    """The gradient alone, of a forward that is done once."""
    crops = call()
    weights = [torch.randn_like(c) for c in crops]
    return lambda: torch.autograd.grad(crops, maps, weights, retain_graph=True, allow_unused=True)


# ---- is it right? ----


def relative_error(value: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest number or of 1."""
    if not exact.numel():
        return 0.0
    return float((value.double() - exact).abs().max() / exact.abs().max().clamp(min=1))


def check(setting: Setting, machine: Gpu | Cpu) -> dict[str, float]:
    """Largest error of every variant, relative to the largest number of torchvision's operator in float64."""
    errors = {}
    for case, dtype in itertools.product(setting.cases, (torch.float32, torch.bfloat16)):
        inputs = make_inputs(
            case, setting.pictures[0], setting.height, setting.width, setting.channels, dtype, machine.device
        )
        exact = with_gradients(
            Inputs([m.double() for m in inputs.maps], inputs.boxes.double(), inputs.batch, inputs.levels),
            True,
        )
        crops = torchvision_side(exact, case)()
        order = torch.cat([(inputs.levels == level).nonzero()[:, 0] for level in range(len(STRIDES))])
        wanted = torch.cat(crops)  # by level: in `order`
        weight = torch.randn_like(wanted).to(dtype)
        wanted_grads = torch.autograd.grad(wanted, exact.maps, weight.double())
        limit = 1e-5 if dtype == torch.float32 else 2**-7
        for method in ("scatter", "gather"):
            ours = with_gradients(inputs, False)
            crop = triton_side(method)(ours, case)()[0]
            grads = torch.autograd.grad(crop[order], ours.maps, weight)
            pairs = [(crop[order], wanted), *zip(grads, wanted_grads, strict=True)]
            error = max(relative_error(a.detach(), b.detach()) for a, b in pairs)
            name = f"{case.name} {str(dtype)[6:]} {method}"
            errors[name] = error
            print(f"  {name:32} {error:.1e}", flush=True)
            if not error <= limit:
                sys.exit(f"{name}: wrong by {error:.1e}, more than {limit:.0e}: nothing is timed")
    return errors


# ---- how long does it take? ----


def bound_seconds(
    load: Traffic, channels: int, dtype: torch.dtype, rates: dict[str, float]
) -> dict[str, float]:
    """The least time of a forward call, by what limits it; the largest is the realistic bound."""
    size = channels * dtype.itemsize
    return {
        "memory": size * (load.touched + load.bins) / rates["copy"],
        "L2, each RoI's cells once": size * load.unique / rates["L2"],
        "L1, each bin's cells once": size * load.reads / rates["L1"],
    }


def measure(
    case: Case, pictures: int, dtype: torch.dtype, setting: Setting, machine: Gpu | Cpu, rates: dict
) -> dict:
    """All times, in milliseconds, of one case."""
    inputs = make_inputs(
        case, pictures, setting.height, setting.width, setting.channels, dtype, machine.device
    )
    load = traffic(case, inputs.boxes.cpu(), inputs.batch.cpu(), [tuple(m.shape[2:]) for m in inputs.maps])
    ours, theirs = with_gradients(inputs, False), with_gradients(inputs, dtype == torch.float32)
    scatter, gather = triton_side("scatter")(ours, case), triton_side("gather")(ours, case)
    best = torchvision_side(theirs, case)
    calls = {"forward": scatter, "forward torchvision": best}
    if case.trains:
        calls["scatter"] = backward_call(scatter, ours.maps)
        calls["gather"] = backward_call(gather, ours.maps)
        calls["backward torchvision"] = backward_call(best, theirs.maps)
    with torch.no_grad():  # forward calls; a backward call has its graph already
        times = {name: machine.device_seconds(call, setting.repeats) for name, call in calls.items()}
    if case.trains:
        usual = multi_scale_side(theirs, case, setting.height, setting.width)
        for name, call, maps in (("wall", scatter, ours.maps), ("wall torchvision", usual, theirs.maps)):
            times[name] = wall_seconds(machine, lambda c=call, m=maps: step(c, m, dtype), setting.repeats)
    bounds = bound_seconds(load, setting.channels, dtype, rates)
    return {
        "case": case.name,
        "pictures": pictures,
        "dtype": str(dtype)[6:],
        "ms": {name: 1e3 * seconds for name, seconds in times.items()},
        "bound_ms": {name: 1e3 * seconds for name, seconds in bounds.items()},
        "bytes": setting.channels * dtype.itemsize * (load.touched + load.bins),
        "share": max(bounds.values()) / times["forward"],
        "traffic": asdict(load),
    }


def step(call: Callable[[], list[Tensor]], maps: list[Tensor], dtype: torch.dtype) -> None:
    """Forward and backward, as a training step calls them."""
    with torch.autocast(maps[0].device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        crops = call()
    torch.autograd.grad(crops, maps, [torch.ones_like(c) for c in crops], allow_unused=True)


def ratios(rows: list[dict]) -> dict[str, list[float]]:
    """For each goal, what every case reached."""
    reached: dict[str, list[float]] = {name: [] for name in GOALS}
    for row in rows:
        ms = row["ms"]
        reached[f"forward {row['dtype']}"].append(ms["forward torchvision"] / ms["forward"])
        reached["share"].append(row["share"])
        if "scatter" in ms:
            reached[f"backward {row['dtype']}"].append(ms["backward torchvision"] / ms["scatter"])
            reached["deterministic"].append(ms["gather"] / ms["scatter"])
            if row["pictures"] == 2:
                reached["wall"].append(ms["wall torchvision"] / ms["wall"])
    return reached


def report(rows: list[dict], machine: Gpu | Cpu) -> dict[str, dict]:
    """Print all times and the table of goals; return the table."""
    print(
        f"\n{'case':11} {'B':>2} {'dtype':8} {'fwd':>8} {'tv':>8} {'share':>6} {'scatter':>8} {'gather':>8}",
        end="",
    )
    print(f" {'tv bwd':>8} {'wall':>8} {'tv wall':>8}   (ms)")
    for row in rows:
        names = ("scatter", "gather", "backward torchvision", "wall", "wall torchvision")
        rest = " ".join(f"{row['ms'][n]:8.3f}" if n in row["ms"] else " " * 8 for n in names)
        print(f"{row['case']:11} {row['pictures']:2} {row['dtype']:8} {row['ms']['forward']:8.3f} ", end="")
        print(f"{row['ms']['forward torchvision']:8.3f} {row['share']:6.0%} {rest}")
    table = {}
    print(f"\non {machine.name:60} | must |   aim | worst | median | verdict")
    for name, values in ratios(rows).items():
        title, must, aim = GOALS[name]
        lower = name == "deterministic"  # a time, the less the better
        worst = max(values) if lower else min(values)
        verdict = next(
            (
                word
                for word, goal in (("aim", aim), ("met", must))
                if (worst <= goal if lower else worst >= goal)
            ),
            "missed",
        )
        median = statistics.median(values)
        print(f"{title:63} | {must:4.2f} | {aim:5.2f} | {worst:5.2f} | {median:6.2f} | {verdict}")
        table[title] = {"must": must, "aim": aim, "worst": worst, "median": median, "verdict": verdict}
    return table


def plot(rows: list[dict], path: Path, name: str) -> None:
    """Forward and backward times of each case over the number of pictures, both sides."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = pyplot.subplots(2, len(cases), figsize=(4 * len(cases), 7), squeeze=False)
    lines = {
        0: (("forward torchvision", "torchvision"), ("forward", "Triton")),
        1: (
            ("backward torchvision", "torchvision"),
            ("scatter", "Triton, scatter"),
            ("gather", "Triton, gather"),
        ),
    }
    for column, case in enumerate(cases):
        for line, parts in lines.items():
            panel = axes[line][column]
            for dtype, style in (("float32", "-"), ("bfloat16", "--")):
                mine = [
                    r for r in rows if r["case"] == case and r["dtype"] == dtype and parts[0][0] in r["ms"]
                ]
                for (key, label), colour in zip(parts, ("#D55E00", "#0072B2", "#009E73"), strict=False):
                    if mine:
                        points = [r["pictures"] for r in mine], [r["ms"][key] for r in mine]
                        panel.loglog(*points, style, marker="o", color=colour, label=f"{label}, {dtype}")
            panel.set(title=f"{case}, {'backward' if line else 'forward'}", xlabel="pictures", ylabel="ms")
            if panel.has_data():
                panel.legend(fontsize=7)
            else:  # inference has no backward pass
                panel.set_axis_off()
    figure.suptitle(f"RoIAlign of all levels, device time, {name}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# ---- which block sizes? ----

CHOICES = {
    "forward": {"channels": (64, 128, 256), "bins": (4, 8, 16), "rows": (2, 4, 7, 14), "numbers": (4, 8, 16)},
    "scatter": {"channels": (64, 128, 256), "cells": (4, 8, 16), "strips": (1, 2, 4, 8), "warps": (1, 2, 4)},
    "gather": {
        "channels": (128, 256),
        "cells": (4, 8),
        "tile": ((8, 8), (8, 16), (16, 16)),
        "warps": (1, 2, 4),
    },
}


def tune(setting: Setting, machine: Gpu | Cpu, most: int | None) -> None:
    """Time every choice on the training cases of 2 pictures; print the 5 best of each kernel and dtype."""
    from minimrcnn.roi_ops.triton_align import TUNING

    for kernel, dtype in itertools.product(CHOICES, (torch.float32, torch.bfloat16)):
        usual, results = dict(TUNING[kernel]), []
        for values in itertools.islice(itertools.product(*CHOICES[kernel].values()), most):
            TUNING[kernel].update(zip(CHOICES[kernel], values, strict=True))
            results.append((tuned_seconds(kernel, dtype, setting, machine), dict(TUNING[kernel])))
        TUNING[kernel].update(usual)
        now = tuned_seconds(kernel, dtype, setting, machine)
        print(f"{kernel} {str(dtype)[6:]}: as it is {1e6 * now:.1f} us, {usual}")
        for seconds, values in sorted(results, key=lambda result: result[0])[:5]:
            print(f"    {1e6 * seconds:8.1f} us  {values}", flush=True)


def tuned_seconds(kernel: str, dtype: torch.dtype, setting: Setting, machine: Gpu | Cpu) -> float:
    """Geometric mean over the training cases; infinite for a choice that does not compile or fit."""
    times = []
    for case in (c for c in setting.cases if c.trains):
        sizes = setting.height, setting.width, setting.channels
        inputs = with_gradients(make_inputs(case, 2, *sizes, dtype, machine.device), False)
        call = triton_side("gather" if kernel == "gather" else "scatter")(inputs, case)
        try:
            if kernel != "forward":
                call = backward_call(call, inputs.maps)
            with torch.no_grad():
                times.append(machine.device_seconds(call, setting.repeats))
        except Exception as error:  # Triton's errors share no class: out of registers, of shared memory, ...
            print(f"    {kernel}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
            return float("inf")
    return statistics.geometric_mean(times)


def main() -> None:
    """Check, then time, then say how far it is from what was asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny maps, on the CPU, in Triton's interpreter"
    )
    parser.add_argument("--tune", action="store_true", help="look for better block sizes, then stop")
    arguments = parser.parse_args()
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":  # it is read when Triton is imported
        command = [sys.executable, "-m", "benchmarks.roi_align", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}).returncode)
    if not arguments.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU here: --dry-run goes through every line on the CPU")
    machine, setting = (Cpu(), DRY) if arguments.dry_run else (Gpu(), Setting())
    torch.manual_seed(0)
    print(f"{machine.name}, torch {torch.__version__}, torchvision {torchvision.__version__}, {date.today()}")
    if arguments.tune:
        return tune(setting, machine, 2 if arguments.dry_run else None)
    print("largest error against float64, as a share of the largest number")
    errors = check(setting, machine)
    big, small = (1, 1) if arguments.dry_run else (2048, 16)
    rates = {"copy": copy_rate(machine, big, setting.repeats), "L2": L2_RATE, "L1": machine.l1_rate}
    cached = copy_rate(machine, small, setting.repeats)
    print(f"copy {rates['copy'] / 1e12:.2f} TB/s; of {small} MB {cached / 1e12:.2f} TB/s; ", end="")
    print(f"assumed: L2 {L2_RATE / 1e12:.1f}, L1 {rates['L1'] / 1e12:.1f} TB/s", flush=True)
    grid = itertools.product(setting.cases, setting.pictures, (torch.float32, torch.bfloat16))
    rows = [measure(*which, setting, machine, rates) for which in grid]
    table = report(rows, machine)
    name = "_".join(machine.name.lower().replace("nvidia", "").split())
    folder = Path(tempfile.mkdtemp()) if arguments.dry_run else RESULTS
    folder.mkdir(exist_ok=True)
    result = {"gpu": machine.name, "torch": torch.__version__, "date": str(date.today()), "rates": rates}
    result |= {"errors": errors, "goals": table, "rows": rows}
    path = folder / f"roi_align_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, path.with_suffix(".png"), machine.name)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
