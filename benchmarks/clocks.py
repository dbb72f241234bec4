"""Clocks of a GPU, and their stand-in on a machine without one, where a dry run goes through the same lines.

Device time: the call is captured in a CUDA graph, and CUDA events stand around each replay; before each, 256
MB are overwritten, so that nothing is found in the L2 cache that a training step would not have there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

L1_BYTES_A_CLOCK = 128  # of one multiprocessor


class Gpu:
    """Clocks of a CUDA device."""

    device = "cuda"

    def __init__(self) -> None:
        self.name = torch.cuda.get_device_name()
        # One stream for all: autograd runs a backward pass on the stream of its forward pass, and a graph
        # cannot be captured from the default stream.
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        self.flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
        properties = torch.cuda.get_device_properties(0)
        clock = 1e3 * properties.clock_rate  # the highest, in Hz
        self.l1_rate = properties.multi_processor_count * L1_BYTES_A_CLOCK * clock

    def device_seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Median time of a graph of `call`, the L2 cache overwritten before each."""
        for _ in range(3):  # compiles, and fills the allocator's pool
            call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            call()
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in marks:
            self.flush.zero_()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3

    def synchronize(self) -> None:
        """Wait until all is done."""
        torch.cuda.synchronize()


class Cpu:
    """The same on a machine without a GPU: times that mean nothing."""

    device, name, l1_rate = "cpu", "dry run", 1e12

    def device_seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Wall time of the last of `repeats` calls."""
        for _ in range(repeats):
            begun = time.perf_counter()
            call()
        return time.perf_counter() - begun

    def synchronize(self) -> None:
        """Nothing runs in the background."""


def wall_seconds(machine: Gpu | Cpu, call: Callable[[], object], repeats: int) -> float:
    """Median time until the result is there."""
    times = []
    for turn in range(repeats + min(repeats, 3)):
        machine.synchronize()
        begun = time.perf_counter()
        call()
        machine.synchronize()
        if turn >= min(repeats, 3):
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def copy_rate(machine: Gpu | Cpu, megabytes: int, repeats: int) -> float:
    """Bytes a second, read and written, of a copy on the device: the ceiling for what only moves data."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / machine.device_seconds(lambda: target.copy_(source), repeats)
