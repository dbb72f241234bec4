"""The order of the batches is a function of (seed, step), whoever reads them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minimrcnn.datasets import loader as loader_module
from minimrcnn.datasets.coco import CocoDataset, Request, find_split
from minimrcnn.datasets.loader import GRACE, StepSampler, eval_loader, train_loader
from minimrcnn.errors import UserError


class Listed:
    """All that a sampler asks of a data set: ids and shapes."""

    def __init__(self, wide: int, tall: int) -> None:
        self.image_ids = [10 * i + 3 for i in range(wide + tall)]
        self.aspect_ratios = [1.5 if i < wide else 0.7 for i in range(wide + tall)]

    def __len__(self) -> int:
        return len(self.image_ids)


def sampler(data: object, batch_size: int = 4, **arguments: object) -> StepSampler:
    return StepSampler(data, batch_size, **{"seed": 5, "vflip": 0.25, "stop": 60} | arguments)


def write(folder: Path, count: int = 9) -> CocoDataset:
    """`count` pictures of three shapes, one object each, the last without any."""
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    images, annotations, shapes = [], [], ((40, 30), (30, 40), (40, 20))
    for number in range(count):
        width, height = shapes[number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "train" / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "width": width, "height": height})
        polygon = [2.0, 2.0, 12.0 + number, 2.0, 7.0, 15.0]
        annotations.append({"id": number + 1, "image_id": number + 1, "category_id": 1})
        annotations[-1] |= {"bbox": [2, 2, 10 + number, 13], "segmentation": [polygon]}
    content = {"images": images, "annotations": annotations[:-1]}
    content["categories"] = [{"id": 1, "name": "triangle"}]
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return CocoDataset(*find_split(folder, "train"))


# -- the order -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 15), st.integers(1, 15), st.integers(1, 6), st.integers(0, 9))
def test_an_epoch_has_every_picture_once_but_those_that_fill_no_batch(
    wide: int, tall: int, size: int, epoch: int
) -> None:
    data = Listed(wide, tall)
    drawn = sampler(data, size)
    if len(data) < size:
        return
    steps = drawn.steps_per_epoch
    batches = [drawn.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
    assert all(len(batch) == size for batch in batches)
    seen = Counter(request.index for batch in batches for request in batch)
    assert set(seen.values()) == {1} and len(seen) == len(data) - len(data) % size
    mixed = [b for b in batches if len({data.aspect_ratios[r.index] for r in b}) == 2]
    assert len(mixed) <= 1


def test_epochs_differ_in_order_flips_and_in_what_they_leave_out() -> None:
    data = Listed(12, 9)
    drawn = sampler(data)
    epochs = [[drawn.batch(5 * epoch + step) for step in range(5)] for epoch in range(12)]
    assert len({str([[r.index for r in b] for b in batches]) for batches in epochs}) == 12
    assert len({frozenset(r.index for b in batches for r in b) for batches in epochs}) > 3
    flips = {(r.hflip, r.vflip) for batches in epochs for b in batches for r in b if r.index == 0}
    assert len(flips) > 1
    # Wide batches, tall batches and the mixed one come in another order every time.
    assert len({tuple(data.aspect_ratios[b[0].index] for b in batches) for batches in epochs}) > 3


def test_flips_come_as_often_as_they_should() -> None:
    data = Listed(500, 500)
    requests = [r for batch in sampler(data, 10, stop=1000) for r in batch]
    assert abs(np.mean([r.hflip for r in requests]) - 0.5) < 0.02  # 4 standard deviations
    assert abs(np.mean([r.vflip for r in requests]) - 0.25) < 0.0175
    assert abs(np.corrcoef(*np.array([(r.hflip, r.vflip) for r in requests]).T)[0, 1]) < 0.04
    assert not any(r.hflip or r.vflip for batch in sampler(data, hflip=0.0, vflip=0.0) for r in batch)
    assert all(r.hflip and r.vflip for batch in sampler(data, hflip=1.0, vflip=1.0) for r in batch)


def test_another_seed_is_another_order() -> None:
    data = Listed(12, 9)
    assert list(sampler(data, seed=1)) != list(sampler(data, seed=2))


@pytest.mark.parametrize("counts", [(12, 9), (2, 1)])
def test_going_on_at_a_step_gives_the_same_batches(counts: tuple[int, int]) -> None:
    data = Listed(*counts)
    whole = list(sampler(data))
    assert len(whole) == len(sampler(data)) == 60
    for start in (1, 5, 23, 59, 60):
        assert list(sampler(data, start=start)) == whole[start:]
        assert len(sampler(data, start=start)) == 60 - start


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world: int) -> None:
    data = Listed(12, 9)
    ranks = [list(sampler(data, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(sampler(data)):
        parts = [ranks[rank][step] for rank in range(world)]
        assert sorted(r for part in parts for r in part) == sorted(batch)
        assert [part[0] for part in parts] == batch[:world]


def test_a_data_set_smaller_than_a_batch_repeats_its_pictures() -> None:
    batches = list(sampler(Listed(2, 1), 8))
    for batch in batches:
        assert sorted(Counter(r.index for r in batch).values()) == [2, 3, 3]
    flips = [{r.hflip for r in batch if r.index == 0} for batch in batches]
    assert {True, False} in flips  # each repetition draws its own


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(UserError, match="no pictures"):
        sampler(Listed(0, 0))
    with pytest.raises(UserError, match="batch of 2 cannot be spread over 3 processes"):
        sampler(Listed(5, 5), 2, world=3)


# -- the loaders ---------------------------------------------------------------------------------------


def flat(batches: object) -> list:
    """Every tensor of every batch, with its type, in order."""
    rows = []
    for images, targets in batches:
        for image, target in zip(images, targets, strict=True):
            tensors = [image, target["boxes"], target["labels"], target["image_id"]]
            rows.append([*tensors, target["masks"].pixels, target["masks"].boxes])
    return rows


def test_batches_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    data = write(tmp_path)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    runs = [flat(train_loader(data, sampler(data, stop=6), workers)) for workers in (0, 1, 2)]
    assert torch.equal(states[0], torch.random.get_rng_state())  # no global generator was touched
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    assert len(runs[0]) == 24
    for run in runs[1:]:
        for expected, found in zip(runs[0], run, strict=True):
            for a, b in zip(expected, found, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)
    requests = [request for batch in sampler(data, stop=6) for request in batch]
    for row, request in zip(runs[0], requests, strict=True):
        assert torch.equal(row[0], data[request][0]) and int(row[3]) == data.image_ids[request.index]


def test_evaluation_sees_every_picture_once_over_all_ranks_and_unflipped(tmp_path: Path) -> None:
    data = write(tmp_path, count=11)
    ids = []
    for rank in range(3):
        for images, targets in eval_loader(data, 2, workers=0, rank=rank, world=3):
            assert len(images) <= 2
            ids += [int(target["image_id"]) for target in targets]
            for image, target in zip(images, targets, strict=True):
                index = data.image_ids.index(int(target["image_id"]))
                assert torch.equal(image, data[Request(index)][0])
    assert sorted(ids) == data.image_ids


def test_evaluation_batches_are_of_similar_shape(tmp_path: Path) -> None:
    data = write(tmp_path, count=12)
    shapes = [{tuple(i.shape) for i in images} for images, _ in eval_loader(data, 4, workers=0)]
    assert [len(s) for s in shapes] == [1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_error_arrives_as_it_was_said(tmp_path: Path, workers: int) -> None:
    data = write(tmp_path)
    (tmp_path / "train" / "4.png").unlink()
    started = time.monotonic()
    assert (
        message_of(eval_loader(data, 2, workers)) == f"The picture {tmp_path / 'train' / '4.png'} is missing."
    )
    assert time.monotonic() - started < 4  # workers that are not let go are waited for, 5 s each


def message_of(loader: object) -> str:
    try:
        list(loader)
    except UserError as error:
        return str(error)
    return "no error"


class Watched(CocoDataset):
    """Reports through a picture's pixels on the process that reads it."""

    def __getitem__(self, request: Request) -> tuple:
        picture, target = super().__getitem__(request)
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        picture[0, 0, :2] = torch.tensor([torch.get_num_threads(), ignored], dtype=torch.uint8)
        target["boxes"] = torch.full((1, 4), float(os.getpid()), dtype=torch.float64)
        return picture, target


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_workers_use_one_thread_and_leave_signals_to_the_main_process(tmp_path: Path, name: str) -> None:
    data = write(tmp_path)
    data.__class__ = Watched
    loader = train_loader(data, sampler(data, stop=4), workers=1)
    batches = iter(loader)
    images, targets = next(batches)
    assert images[0][0, 0, :2].tolist() == [1, 1]
    worker = int(targets[0]["boxes"][0, 0])
    assert worker != os.getpid()
    subprocess.run(["kill", f"-{name}", str(worker)], check=True)  # as another process sends it
    time.sleep(0.2)
    assert len(list(batches)) == 3  # the worker reads on
    assert int(next(iter(loader))[1][0]["boxes"][0, 0]) == worker  # and stays for the next pass


def test_a_worker_that_is_told_to_end_does_so_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "GRACE", 1)
    data = write(tmp_path)
    batches = iter(train_loader(data, sampler(data), workers=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    began = time.monotonic()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(60)
    assert worker.exitcode == 0 and time.monotonic() - began >= 1


def test_a_program_ends_while_its_workers_wait_for_more(tmp_path: Path) -> None:
    """They would be sent SIGTERM, and waited for, when the program ends."""
    write(tmp_path)
    done = subprocess.run([sys.executable, "-c", KEEPS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert "worker" not in done.stderr  # no complaint of a worker that died
    assert time.time() - float(done.stdout) < GRACE / 2


KEEPS = """
import sys, time
from pathlib import Path
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.datasets.loader import StepSampler, train_loader
data = CocoDataset(*find_split(Path(sys.argv[1]), "train"))
batches = iter(train_loader(data, StepSampler(data, 2, seed=0, stop=100), workers=2))
next(batches)
print(time.time())
1 / 0
"""
