"""Batches: which pictures at which step, and the workers that read them.

The rule, whole: an epoch is an order of all pictures, drawn from (seed, epoch). Wide and tall
pictures are cut into batches apart, so that little is padded; what is left over of both makes mixed
batches; what does not fill a batch waits for another epoch. The batches are then put into an order
drawn from (seed, epoch) as well. An epoch is thus `pictures // batch_size` steps, and step s is batch
`s % steps` of epoch `s // steps`: nothing has to be remembered to go on from there. A data set
smaller than a batch fills each batch from as many epochs as it takes.
"""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from minimrcnn.datasets.coco import CocoDataset, Request
from minimrcnn.errors import UserError
from minimrcnn.randomness import fold, uniform
from minimrcnn.structures import MaskCrops

_STREAM = 0xDA7A  # keeps these draws apart from the model's, whose keys begin with the seed as well
GRACE = 30  # seconds that a worker reads on after SIGTERM
_READING: weakref.WeakSet = weakref.WeakSet()  # what workers are reading for


class StepSampler(Sampler[list[Request]]):
    """The batches of steps start..stop-1, each a function of (seed, step) alone.

    Rank r of `world` takes batch[r::world]: all ranks together make the batch of one process.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_size: int,
        seed: int,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int = 1,
    ) -> None:
        """`batch_size` counts the pictures of all ranks; `hflip` and `vflip` are probabilities.

        Raises:
            UserError: the data set is empty, or the batch has no picture for every rank.
        """
        if len(dataset) == 0:
            raise UserError("The data set has no pictures: there is nothing to train on.")
        if batch_size < world:
            raise UserError(
                f"A batch of {batch_size} cannot be spread over {world} processes: make it larger."
            )
        self.batch_size, self.seed, self.hflip, self.vflip = batch_size, seed, hflip, vflip
        self.rank, self.world, self.start, self.stop = rank, world, start, stop
        self.image_ids = torch.tensor(dataset.image_ids)  # (n,) int64
        self.wide = torch.tensor(dataset.aspect_ratios) >= 1  # (n,) bool
        self.steps_per_epoch = max(1, len(dataset) // batch_size)
        self._epoch, self._batches = -1, []

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Request]]:
        for step in range(self.start, self.stop):
            yield self.batch(step)[self.rank :: self.world]

    def batch(self, step: int) -> list[Request]:
        """The whole batch of one step, all ranks together."""
        if len(self.image_ids) < self.batch_size:
            rounds = -(-self.batch_size // len(self.image_ids))
            epochs = range(step * rounds, (step + 1) * rounds)
            return [request for epoch in epochs for request in self._draw(epoch)][: self.batch_size]
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._cut(epoch)
        return self._batches[position]

    def _draw(self, epoch: int) -> list[Request]:
        """Every picture once, in the order of the epoch, with its flips."""
        draws = uniform(fold(self.seed, _STREAM, epoch, self.image_ids), 3)  # (n, 3)
        order = draws[:, 0].argsort(stable=True)
        hflips, vflips = draws[:, 1] < self.hflip, draws[:, 2] < self.vflip
        return list(map(Request, order.tolist(), hflips[order].tolist(), vflips[order].tolist()))

    def _cut(self, epoch: int) -> list[list[Request]]:
        """The batches of an epoch, in order."""
        size, batches, left = self.batch_size, [], []
        requests, wide = self._draw(epoch), self.wide.tolist()
        for shape in (True, False):
            group = [request for request in requests if wide[request.index] is shape]
            full = len(group) // size * size
            batches += [group[i : i + size] for i in range(0, full, size)]
            left += group[full:]
        batches += [left[i : i + size] for i in range(0, len(left) - size + 1, size)]
        order = uniform(fold(self.seed, _STREAM, epoch)[None], len(batches))[0].argsort(stable=True)
        return [batches[i] for i in order.tolist()]


class _Carried(Dataset):
    """A data set whose UserErrors come back as values: a worker would bury them in tracebacks."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request: Request) -> tuple[Tensor, dict] | UserError:
        try:
            return self.dataset[request]
        except UserError as error:
            return error


class _Loader(DataLoader):
    """Yields (images, targets), and raises here the UserError of a worker."""

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict]]]:
        batches = super().__iter__()
        if self.num_workers:
            _READING.add(batches)
        for batch in batches:
            if isinstance(batch, UserError):
                # A new error: one that this frame held by name would keep frame and workers alive.
                raise UserError(str(batch))
            images, targets = batch
            yield images, [_unpack(target) for target in targets]


def _collate(samples: list) -> tuple[list[Tensor], list[dict]] | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return [picture for picture, _ in samples], [_pack(target) for _, target in samples]


def _pack(target: dict) -> dict:
    """NumPy arrays travel through a pipe; each tensor would hold a file open, of which 1024 are allowed."""
    masks = target["masks"]
    arrays = {name: value.numpy() for name, value in target.items() if name != "masks"}
    return {**arrays, "masks": (masks.pixels.numpy(), masks.boxes.numpy())}


def _unpack(target: dict) -> dict:
    tensors = {name: torch.from_numpy(array) for name, array in target.items() if name != "masks"}
    return {**tensors, "masks": MaskCrops(*map(torch.from_numpy, target["masks"]))}


def _start_worker(_: int) -> None:
    """One thread a worker; and it reads on when Ctrl-C or SIGTERM comes, for the main process's last step.

    A terminal sends Ctrl-C, and a cluster SIGTERM, to every process of a run. The main process finishes
    its step, saves, and ends its workers. GRACE is for a main process that cannot: a worker that ignored
    SIGTERM for good would be waited for for ever when multiprocessing ends it so.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # Windows has neither
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


@atexit.register
def _end_workers() -> None:
    """In order, by way of their queues, also those that an unhandled error's traceback keeps alive."""
    for batches in list(_READING):
        batches._shutdown_workers()


def _loader(dataset: CocoDataset, batches: Sampler | list, workers: int) -> DataLoader:
    # More readers than cores would only wait for one another, and torch warns of them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    return _Loader(
        _Carried(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # DataLoader would draw its workers' seed from the global one
    )


def train_loader(dataset: CocoDataset, sampler: StepSampler, workers: int) -> DataLoader:
    """Batches (images: list of (3, H, W) uint8, targets: list of dicts) for the sampler's steps.

    The same whatever the number of workers; 0 reads in this process. Raises a worker's UserError.
    """
    return _loader(dataset, sampler, workers)


def eval_loader(
    dataset: CocoDataset, batch_size: int, workers: int, rank: int = 0, world: int = 1
) -> DataLoader:
    """Every picture once over all ranks, unflipped; neighbours have similar shapes, so little is padded."""
    order = sorted(range(len(dataset)), key=lambda index: (dataset.aspect_ratios[index], index))
    mine = [Request(index) for index in order[rank::world]]
    return _loader(dataset, [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)], workers)
