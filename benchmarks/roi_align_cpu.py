"""RoIAlign on two CPU threads: torchvision's operator against the vectorised one, with the memory of ours.

    python -m benchmarks.roi_align_cpu
    python -m benchmarks.roi_align_cpu --threads 1 --repeats 30

P2, with the RoIs that read it: `torchvision.ops.roi_align` against `roi_ops.roi_align`. P2 to P5:
`MultiScaleRoIAlign` against `roi_ops.pyramid_roi_align`. Both sides have the maps as they like them best,
torchvision contiguous, ours channels_last, and compute the same crops. Must reach 2x, forward and backward;
aim 4x. Memory: at most twice the crops and the cells that they touch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.ops.poolers import MultiScaleRoIAlign

from benchmarks.common import THREADS, start
from minimrcnn import roi_ops

STRIDES = (4, 8, 16, 32)


class Case(NamedTuple):
    """Maps P2 to P5 and RoIs, `count` a picture with sides from `low` to `high` pixels."""

    name: str
    pictures: int
    channels: int
    height: int
    width: int
    count: int
    low: float
    high: float
    output_size: int
    canonical_scale: float


CASES = (
    Case("mini box", 4, 32, 192, 192, 128, 16, 112, 7, 448.0),
    Case("mini 32", 4, 32, 192, 192, 32, 16, 112, 7, 448.0),  # so few are mostly the cost of small calls
    Case("mini mask", 4, 32, 192, 192, 16, 16, 112, 14, 448.0),
    Case("R50 box", 1, 256, 800, 1216, 512, 16, 700, 7, 224.0),
    Case("R50 mask", 1, 256, 800, 1216, 128, 16, 700, 14, 224.0),
)


def rois_of(case: Case) -> list[Tensor]:
    """Boxes (K, 4) of each picture; the logarithm of the side is uniform, as it nearly is in COCO."""
    boxes = []
    for _ in range(case.pictures):
        side = case.low * (case.high / case.low) ** torch.rand(case.count, 1)
        ratio = 2 ** (torch.rand(case.count, 1) - 0.5)
        size = side * torch.cat([ratio, 1 / ratio], dim=1)  # (K, 2), width and height
        size = torch.minimum(size.clamp(case.low, case.high), torch.tensor([case.width, case.height]) - 1.0)
        corner = torch.rand(case.count, 2) * (torch.tensor([case.width, case.height]) - size)
        boxes.append(torch.cat([corner, corner + size], dim=1))
    return boxes


def levels_of(case: Case, boxes: Tensor) -> Tensor:
    """Which map each RoI reads, 0 for P2, as torchvision shares them out."""
    return roi_ops.assign_levels(boxes, len(STRIDES), case.canonical_scale, ("outside", 1e-6))


class Side(NamedTuple):
    """One implementation: its maps, and the function that makes crops out of them."""

    maps: list[Tensor]
    run: Callable[[list[Tensor]], Tensor]


def one_level(case: Case, features: list[Tensor], boxes: list[Tensor], ratio: int) -> dict[str, Side]:
    """The RoIs that read P2, by each operator of one map."""
    rois = roi_ops.as_rois(boxes)
    rois = rois[levels_of(case, rois[:, 1:]) == 0]
    rest = rois, case.output_size, 1 / STRIDES[0], ratio
    return {
        "torchvision": Side(features[:1], lambda maps: torchvision.ops.roi_align(maps[0], *rest)),
        "minimrcnn": Side(channels_last(features[:1]), lambda maps: roi_ops.roi_align(maps[0], *rest)),
    }


def pyramid(case: Case, features: list[Tensor], boxes: list[Tensor], ratio: int) -> dict[str, Side]:
    """Each RoI on the level of its size, as the models pool."""
    names = [str(i) for i in range(len(STRIDES))]
    theirs = MultiScaleRoIAlign(names, case.output_size, ratio, canonical_scale=case.canonical_scale)
    shapes = [(case.height, case.width)] * case.pictures
    every, batch = torch.cat(boxes), torch.arange(case.pictures).repeat_interleave(case.count)

    def ours(maps: list[Tensor]) -> Tensor:
        rest = levels_of(case, every), STRIDES, case.output_size, ratio, False
        return roi_ops.pyramid_roi_align(maps, every, batch, *rest)

    return {
        "torchvision": Side(
            features, lambda maps: theirs(dict(zip(names, maps, strict=True)), boxes, shapes)
        ),
        "minimrcnn": Side(channels_last(features), ours),
    }


def channels_last(maps: list[Tensor]) -> list[Tensor]:
    """Copies of the maps in channels_last, leaves that take a gradient."""
    copies = [m.detach().clone(memory_format=torch.channels_last) for m in maps]
    return [m.requires_grad_() for m in copies]


def step(side: Side, gradient: Tensor, clock: Callable[[], float]) -> tuple[float, float]:
    """Milliseconds of one pass forward and one backward."""
    for m in side.maps:
        m.grad = None
    begun = clock()
    crops = side.run(side.maps)
    between = clock()
    crops.backward(gradient)
    return (between - begun) * 1e3, (clock() - between) * 1e3


def compare(sides: dict[str, Side], repeats: int, clock: Callable[[], float]) -> list[str]:
    """Both sides in turns: median milliseconds, the ratio, and the ratio of the fastest passes."""
    theirs, ours = (side.run(side.maps) for side in sides.values())
    apart = (theirs - ours).abs().max().item()
    gradient = torch.randn(theirs.shape)
    gradients = [gradient, gradient.contiguous(memory_format=torch.channels_last)]
    times: list[list[tuple[float, float]]] = [[], []]
    for i in range(repeats + 1):
        for side, g, found in zip(sides.values(), gradients, times, strict=True):
            taken = step(side, g, clock)
            if i:  # the first warms up
                found.append(taken)
    cells = [f"{apart:8.0e}"]
    for way in (0, 1):
        per_side = [[t[way] for t in found] for found in times]
        their_median, our_median = (statistics.median(t) for t in per_side)
        fastest = min(per_side[0]) / min(per_side[1])
        cells.append(
            f"{their_median:9.1f} {our_median:8.1f} {their_median / our_median:6.1f}x ({fastest:5.1f}x)"
        )
    return cells


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that was allocated at one time while `run` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        kept = run()
    events = recorded.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    del kept
    return peak


def memory(side: Side) -> list[str]:
    """Megabytes: crops, touched cells, allowed, used forward, the maps, used backward with their gradient."""
    crops = side.run(side.maps)
    size = crops.numel() * crops.element_size()
    crops.backward(torch.ones_like(crops))
    maps = sum(m.numel() * m.element_size() for m in side.maps)
    touched = sum(int((m.grad[:, 0] != 0).sum()) * m.shape[1] * m.element_size() for m in side.maps)
    crops, gradient = side.run(side.maps), torch.ones_like(crops)
    forward, backward = peak_bytes(lambda: side.run(side.maps)), peak_bytes(lambda: crops.backward(gradient))
    numbers = size, touched, 2 * size + touched, forward, maps, backward
    return [f"{n / 1e6:9.1f}" for n in numbers]


def main() -> None:
    """Print the times and the memory of all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cpu-time", action="store_true", help="count the process's time, not the wall's")
    parser.add_argument("--sampling-ratio", type=int, default=2)
    arguments = parser.parse_args()
    start()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(f"{arguments.threads} threads, {arguments.repeats} repeats, {clock.__name__}, milliseconds\n")
    print(f"{'':20} {'apart':>8}   forward: torchvision, ours, ratio   backward: torchvision, ours, ratio")
    built = []
    for case in CASES:
        features = [
            torch.randn(case.pictures, case.channels, case.height // s, case.width // s) for s in STRIDES
        ]
        features, boxes = [f.requires_grad_() for f in features], rois_of(case)
        for kind in (one_level, pyramid):
            sides = kind(case, features, boxes, arguments.sampling_ratio)
            name = f"{case.name}, {'P2' if kind is one_level else 'P2 to P5'}"
            built.append((name, sides["minimrcnn"]))
            print(f"{name:20}", *compare(sides, arguments.repeats, clock), flush=True)
    titles = ("crops", "touched", "allowed", "forward", "maps", "backward")
    print(f"\n{'MB of ours':20}", *(f"{title:>9}" for title in titles))
    for name, side in built:
        print(f"{name:20}", *memory(side), flush=True)


if __name__ == "__main__":
    main()
