"""Two gloo processes do what one does with the whole batch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, write_dataset
from two import BATCHES, gradients

from minimrcnn.engine import checkpoint, train
from minimrcnn.engine.distributed import Group, choose_device, processes
from minimrcnn.engine.log import read_log
from minimrcnn.errors import UserError

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the processes that are compared with this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pictures; number 2 has no object, number 6 is flat."""
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data", empty=(2,), flat=(6,))


def torchrun(what, data, out):
    """Start tests/two.py in two processes and wait for them; gloo itself would wait for half an hour."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(HERE / "two.py"), what, str(data), str(out)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


# ---------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    """Gradients of two processes, and of one."""
    path = tmp_path_factory.mktemp("gradients") / "two.pt"
    done = torchrun("gradients", data, path)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True), gradients(data, Group(0, 1, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_of_two_processes_are_those_of_one(both, batch):
    two, one = (found[batch] for found in both)
    assert two.keys() == one.keys()
    largest = max(value.norm() for value in one.values())
    assert largest > 0
    for name in one:
        # Relative to the parameter's own gradient; 1e-7 of the largest is where float32 ends.
        assert (two[name] - one[name]).norm() <= 1e-5 * one[name].norm() + 1e-7 * largest, name


@pytest.mark.slow
def test_the_gradients_tell_the_batches_apart(both):
    """What the test above compares is neither zero nor the same for all."""
    for name in ("roi_heads.box_predictor.cls_score.weight", "rpn.head.cls_logits.weight"):
        values = [found[name] for found in both[1].values()]
        assert all(value.norm() > 0 for value in values)
        assert not any(torch.allclose(a, b) for a, b in itertools.pairwise(values))


# ---------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_run_of_two_processes(data, tmp_path):
    """One of them is stopped at step 3: both save and stop; resumed they end where one process does."""
    out = tmp_path / "two"
    done = torchrun("stop", data, out)
    assert done.returncode != 0
    assert "stopped after step 3" in done.stdout
    assert checkpoint.load(out / "checkpoint.pt")["step"] == 3
    done = torchrun("resume", data, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("going on after step 3 of 12") == 1  # the first process speaks for both
    train.train(tiny_config(), data, tmp_path / "one", device="cpu")
    two, one = (read_log(folder / "log.jsonl") for folder in (out, tmp_path / "one"))
    assert [line["step"] for line in two] == list(range(1, 13))
    for ours, theirs in zip(two[:3], one[:3], strict=True):  # later, rounding has grown through the updates
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["lr"] == theirs["lr"]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other(data, tmp_path):
    done = torchrun("fail", data, tmp_path / "run")
    assert done.returncode != 0
    assert "rank 1 fails on purpose" in done.stderr
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 2


# ---------------------------------------------------------------- one process


def test_one_process_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as group:
        value, module = torch.ones(2), torch.nn.Linear(1, 1)
        assert (group.rank, group.world, group.first) == (0, 1, True)
        assert group.mean(value) is value
        assert group.wrap(module) is module
        assert group.everyones(3) == [3] and group.firsts("x") == "x"
        group.wait()
    assert not torch.distributed.is_initialized()


def test_more_processes_than_pictures_in_a_batch():
    with pytest.raises(UserError, match="batch_size 2 is less than the 4 processes"):
        train.check_machine(tiny_config(), Group(0, 4, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "said"),
    [("gpu", "no such device"), ("mps", "CPUs and on CUDA"), ("cuda:99", r"GPU 99 is wanted")],
)
def test_devices_that_are_not_there(name, said):
    with pytest.raises(UserError, match=said):
        choose_device(name)


def test_devices_that_are_there():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
