"""One process or many: who I am, what we agree on, and how gradients are averaged.

`torchrun --nproc-per-node=2 -m minimrcnn train ...` starts the same program twice and tells each copy
its rank through environment variables. Everything else is here: a process that torchrun did not start
is a group of one, for which each of these functions does nothing.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from minimrcnn.errors import UserError


@dataclass(frozen=True)
class Group:
    """The processes that train together, seen from one of them."""

    rank: int
    world: int  # how many processes
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.first:
            print(text, flush=True)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor that all of them have, of the same shape."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
            values = values / self.world
        return values

    def everyones(self, value: object) -> list:
        """The values of all processes, by rank. Waits for them."""
        gathered = [value]
        if self.world > 1:
            gathered = [None] * self.world
            distributed.all_gather_object(gathered, value)
        return gathered

    def firsts(self, value: object) -> object:
        """The first process's value, for all of them: clocks differ, decisions must not."""
        return self.everyones(value)[0]

    def wait(self) -> None:
        """Let no process go on before all of them are here."""
        self.everyones(None)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes while backward still runs."""
        if self.world == 1:
            return module
        # The strides of a 1x1 convolution can be written in two ways that mean the same memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Buffers are running statistics of "batch" normalisation: the first process's go into the checkpoint.
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )


def joined(device: torch.device | str) -> Group:
    """The group that this process belongs to: the one that `processes` has joined, or a group of one."""
    device = torch.device(device)
    if not (distributed.is_available() and distributed.is_initialized()):
        return Group(0, 1, device)
    return Group(distributed.get_rank(), distributed.get_world_size(), device)


@contextmanager
def processes(device: str = "auto") -> Iterator[Group]:
    """Join the group that torchrun started, or be a group of one.

    Nested uses share one group; the outermost ends it. When the body fails nothing is ended in an
    orderly way: a collective call would wait for a process that is gone. torchrun ends the others.

    Raises:
        UserError: as `choose_device`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield joined(choose_device(device))
        return
    chosen = choose_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    mine = not distributed.is_initialized()
    if mine:
        on_gpu = chosen.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(chosen)
        # With GPUs both: what the host has to know of the others goes over the CPU, and waits for no GPU.
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        distributed.init_process_group(backend, device_id=chosen if on_gpu else None)
    group = joined(chosen)
    yield group
    if mine:
        group.wait()
        # DistributedDataParallel must be gone before its group: freed later, it would join the group's
        # threads with Python's lock in its hand, for which one of these threads may be waiting.
        gc.collect()
        distributed.destroy_process_group()


@functools.cache  # so that what it says is said once
def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name`; "auto" is the GPU where CUDA works and the CPU elsewhere.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            print("Apple's GPU (MPS) lacks operators that the model needs: using the CPU.", file=sys.stderr)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name!r}: no such device. Give auto, cpu, cuda or cuda:N.") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UserError(f"--device {name}: the package runs on CPUs and on CUDA. Give auto, cpu or cuda.")
    index = local_rank if device.index is None else device.index
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise UserError(
            f"--device {name}: GPU {index} is wanted and PyTorch sees {count}. Give --device cpu"
            + (", or start fewer processes." if count else ", or install a CUDA build of PyTorch.")
        )
    return torch.device("cuda", index)
