"""Real runs of a tiny model: what they leave, how they stop, how they go on."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SIDE, tiny_config, typed, write_dataset
from torch import nn

from minimrcnn import weights
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.datasets.loader import StepSampler
from minimrcnn.engine import checkpoint, train
from minimrcnn.engine.interrupt import resume_command
from minimrcnn.engine.log import read_log
from minimrcnn.engine.optimizer import build_optimizer, parameter_groups, update
from minimrcnn.engine.schedule import MARGIN, learning_rate
from minimrcnn.engine.settings import config_from_plain
from minimrcnn.errors import UserError
from minimrcnn.model import MaskRCNN

TERMS = ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
TINY = Path(__file__).with_name("tiny.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TINY.parents[1])}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums of more threads may be in another order in another process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pictures; number 2 has no object."""
    return write_dataset(tmp_path_factory.mktemp("tiny") / "data", empty=(2,))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """The folder of an uninterrupted run of 12 steps."""
    out = tmp_path_factory.mktemp("reference") / "run"
    train.train(tiny_config(), data, out, device="cpu")
    return out


def run(data, out, *, resume=False, limit=None, **recipe):
    train.train(tiny_config(**recipe), data, out, resume=resume, time_limit=limit, device="cpu")


def losses(out):
    """What a log holds of the arithmetic, without the times."""
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "elapsed")}
        for line in read_log(out / "log.jsonl")
    ]


def at_step(monkeypatch, number, action):
    """Call `action` when step `number` (from 1) begins."""
    original = train.train_step

    def step(run, *arguments):
        if run.step + 1 == number:
            action()
        return original(run, *arguments)

    monkeypatch.setattr(train, "train_step", step)


# ---------------------------------------------------------------- what a run leaves


def test_the_folder_of_a_run(reference):
    assert sorted(file.name for file in reference.iterdir()) == ["checkpoint.pt", "config.json", "log.jsonl"]
    config = config_from_plain(json.loads((reference / "config.json").read_text()))
    assert config.architecture.num_classes == 3  # two, and the background
    assert replace(config, architecture=tiny_config().architecture) == tiny_config()


def test_the_log(reference):
    lines, recipe = read_log(reference / "log.jsonl"), tiny_config().recipe
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        assert list(line) == ["step", *TERMS, "loss", "grad_norm", "lr", "images_per_second", "elapsed"]
        assert line["loss"] == pytest.approx(sum(line[term] for term in TERMS), rel=1e-5)
        assert line["lr"] == learning_rate(line["step"] - 1, recipe, 12)
        assert line["images_per_second"] > 0
    assert [line["elapsed"] for line in lines] == sorted(line["elapsed"] for line in lines)


def test_the_checkpoint(reference):
    state = checkpoint.load(reference / "checkpoint.pt")
    model, class_map = weights.from_checkpoint(state)
    assert (state["step"], state["steps"]) == (12, 12)
    assert class_map.category_ids == (3, 7)
    assert isinstance(model, MaskRCNN) and model.architecture.num_classes == 3


def test_training_learns(data, tmp_path):
    run(data, tmp_path / "run", steps=60, lr=5e-3)
    lines = read_log(tmp_path / "run" / "log.jsonl")
    early, late = ([line["loss"] for line in part] for part in (lines[:10], lines[-10:]))
    assert sum(late) < 0.8 * sum(early)


def test_start_up_says_what_nobody_typed(data, tmp_path, capsys):
    run(data, tmp_path / "run", steps=1, base_batch=16, lr=0.02, warmup=5)
    said = capsys.readouterr().out
    assert "learning rate: 0.0025 = 0.02 * 2 / 16 (linear rule" in said
    assert "6 pictures, num_classes 3 (2 and the background)" in said
    assert "the warm-up of 5 steps is no shorter than the run" in said


def test_pictures_without_objects_train(tmp_path):
    data = write_dataset(tmp_path / "data", pictures=3, empty=(1, 2, 3))
    run(data, tmp_path / "run", steps=3)
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["loss_mask"] for line in lines] == [0.0] * 3
    assert all(line["loss_classifier"] > 0 for line in lines)


def test_a_set_without_masks_trains_boxes_alone(tmp_path):
    data = write_dataset(tmp_path / "data", pictures=2)
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no object has a segmentation.*--set masks=false"):
        run(data, tmp_path / "run", steps=2)
    assert not (tmp_path / "run").exists()
    config = tiny_config(steps=2)
    boxes = replace(config, architecture=replace(config.architecture, masks=False))
    train.train(boxes, data, tmp_path / "run", device="cpu")
    assert "loss_mask" not in read_log(tmp_path / "run" / "log.jsonl")[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_costs_no_step(data, reference, tmp_path, capsys, workers):
    broken = Path(shutil.copytree(data, tmp_path / "data"))
    third = StepSampler(CocoDataset(*find_split(data, "train")), batch_size=2, seed=0).batch(2)
    picture = broken / "train" / f"{third[0].index + 1}.png"  # three steps see six pictures once
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{picture.name} cannot be read whole"):
        run(broken, tmp_path / "run", workers=workers)
    assert "after step 2; --resume goes on from there" in capsys.readouterr().out
    picture.write_bytes(whole)
    run(broken, tmp_path / "run", workers=workers, resume=True)
    assert losses(tmp_path / "run") == losses(reference)


def test_a_batch_larger_than_the_data_set(data, tmp_path):
    run(data, tmp_path / "run", steps=2, batch_size=8)
    assert len(losses(tmp_path / "run")) == 2


OTHERS = [
    {"optimizer": "sgd", "schedule": "steps", "clip": 0.0},
    {"amp": "bf16"},
    {"first_size": 32, "grown_at": 0.5},
]


@pytest.mark.parametrize("recipe", OTHERS)
def test_other_recipes_train_and_resume(data, tmp_path, monkeypatch, recipe, capsys):
    run(data, tmp_path / "whole", steps=6, **recipe)
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "parts", steps=6, **recipe)
    monkeypatch.undo()
    run(data, tmp_path / "parts", steps=6, resume=True, **recipe)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    slow = "amp" in recipe and not torch.cpu._is_avx512_bf16_supported()
    assert ("no bfloat16 instructions" in capsys.readouterr().out) == slow


def test_pictures_that_grow(data, tmp_path, monkeypatch, capsys):
    sides, original = [], MaskRCNN.make_batch

    def spy(*arguments):
        batch = original(*arguments)
        sides.append(tuple(batch.images.shape[2:]))
        return batch

    monkeypatch.setattr(MaskRCNN, "make_batch", spy)
    run(data, tmp_path / "run", steps=4, first_size=32, grown_at=0.5)
    assert sides == [(32, 32)] * 2 + [(SIDE, SIDE)] * 2
    assert "short side 32 px, and whole after 50% of the steps" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert weights.from_checkpoint(state)[0].architecture.min_size == (SIDE,)  # for all who use it


# ---------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(data, reference, tmp_path, monkeypatch, capsys, number):
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run")
    assert signal.getsignal(number) is before
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 6
    assert "stopped after step 6" in capsys.readouterr().out
    monkeypatch.undo()
    run(data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reference)


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_saves(data, tmp_path):
    """As a terminal sends Ctrl-C, and a cluster SIGTERM: to the workers as well, which must read on."""
    config = tiny_config(steps=60, workers=2, checkpoint_every=1000)
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "parts" / "log.jsonl"
    train.train(config, data, whole, device="cpu")
    command = [
        sys.executable,
        "-m",
        "minimrcnn",
        "train",
        "--config",
        "mini",
        "--device",
        "cpu",
        *typed(config),
    ]
    command += ["--data", str(data), "--out", str(parts), "--no-evaluate"]
    for number, resume in ((signal.SIGTERM, []), (signal.SIGINT, ["--resume"])):
        begun = len(read_log(log))
        with subprocess.Popen(
            [*command, *resume], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        ) as child:  # fmt: skip
            _wait_until(lambda: len(read_log(log)) > begun + 3, child)  # noqa: B023
            os.killpg(child.pid, number)
            said, errors = child.communicate(timeout=120)
        steps = len(read_log(log))
        assert begun < steps < 60 and child.returncode == 130
        assert checkpoint.load(parts / "checkpoint.pt")["step"] == steps
        assert f"stopped after step {steps} and saved {parts / 'checkpoint.pt'}. To go on:" in said
        assert "worker" not in errors and "Traceback" not in errors
    train.train(config, data, parts, resume=True, device="cpu")
    assert losses(parts) == losses(whole)


def test_a_second_signal_stops_at_once(data, tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 6, twice)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4  # checkpoint_every


def test_resume_command(monkeypatch):
    typed = ["/x/minimrcnn/__main__.py", "train", "--data", "my data", "--out", "run"]
    assert resume_command(typed) == "python -m minimrcnn train --data 'my data' --out run --resume"
    assert (
        resume_command([*typed, "--resume"])
        == "python -m minimrcnn train --data 'my data' --out run --resume"
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resume_command(typed, world=2).startswith("torchrun --nproc-per-node=2 -m minimrcnn train ")
    assert resume_command(["/usr/bin/ipykernel"]) == "train(..., resume=True), with the same arguments"


def test_a_run_that_was_killed_before_its_first_checkpoint(data, reference, tmp_path, monkeypatch):
    def die():
        raise RuntimeError

    at_step(monkeypatch, 3, die)
    with pytest.raises(RuntimeError):
        run(data, tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    run(data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reference)


def test_a_log_line_half_written_and_a_stray_temporary_file(data, reference, tmp_path, monkeypatch):
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run")
    monkeypatch.undo()
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"step": 7, "loss": 1}\n{"step": 8, "lo')
    (tmp_path / "run" / "checkpoint.pt.tmp").write_bytes(b"half")
    run(data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reference)
    assert not (tmp_path / "run" / "checkpoint.pt.tmp").exists()


def test_a_finished_run_resumes_to_nothing(data, reference, capsys):
    before = {file: file.read_bytes() for file in reference.iterdir()}
    run(data, reference, resume=True)
    assert "finished before: 12 steps" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in reference.iterdir()} == before


@pytest.mark.slow
def test_kill_9_at_any_moment(data, tmp_path):
    """Killed while it starts, trains, or writes a checkpoint, a run ends at the same losses to the bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = [sys.executable, str(TINY), str(data)]
    run(data, whole, steps=40)
    rng, partial = random.Random(0), parts / "checkpoint.pt.tmp"
    for attempt in range(4):
        resume = ["--resume"] if (parts / "config.json").exists() else []
        began = _written(parts / "config.json")
        arguments = [*command, str(parts), "--steps", "40", "--slow-save", *resume]
        with subprocess.Popen(
            arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=ENVIRONMENT
        ) as child:
            # Python and torch take seconds to start, so the clock runs from when the run opens its folder.
            _wait_until(lambda: _written(parts / "config.json") != began, child)  # noqa: B023
            if attempt % 2:
                _wait_until(partial.exists, child)
                time.sleep(rng.uniform(0.0, 0.15))  # saving takes 0.2 s
            else:
                time.sleep(rng.uniform(0.0, 0.6))
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert partial.exists() or attempt % 2 == 0
    assert len(losses(parts)) < 40
    run(data, parts, steps=40, resume=True)
    assert losses(parts) == losses(whole)
    ours, theirs = (checkpoint.load(out / "checkpoint.pt") for out in (parts, whole))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    assert sorted(file.name for file in parts.iterdir()) == ["checkpoint.pt", "config.json", "log.jsonl"]


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else None


def _wait_until(true, child):
    while not true():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.002)


# ---------------------------------------------------------------- what is refused


def test_a_run_is_not_overwritten(data, reference):
    before = {file: file.read_bytes() for file in reference.iterdir()}
    with pytest.raises(UserError, match=r"holds a run already, of 12 steps.*--resume.*another --out"):
        run(data, reference)
    assert {file: file.read_bytes() for file in reference.iterdir()} == before


def test_out_is_a_file(data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="this is a file"):
        run(data, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_nothing_to_resume(data, tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        run(data, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("field", "value"), [("lr", 0.5), ("steps", 24), ("seed", 1), ("batch_size", 3)])
def test_resume_with_other_settings(data, reference, field, value):
    before = (reference / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=rf"other settings.*\n  recipe\.{field}: .*, {value}\n"):
        run(data, reference, resume=True, **{field: value})
    assert (reference / "checkpoint.pt").read_bytes() == before


def test_resume_of_another_architecture(data, reference):
    config = tiny_config()
    config = replace(config, architecture=replace(config.architecture, box_hidden=48))
    with pytest.raises(UserError, match=r"architecture\.box_hidden: 32, 48"):
        train.train(config, data, reference, resume=True, device="cpu")


def test_resume_on_other_classes(data, reference, tmp_path):
    other = write_dataset(tmp_path / "other")
    path = other / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "tall"})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"knows 2 classes.*has 3"):
        run(other, reference, resume=True)


def test_resume_of_a_checkpoint_cut_short(data, reference, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    content = (reference / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"checkpoint\.pt: this checkpoint is cut short"):
        run(data, out, resume=True)


def test_resume_of_a_model_alone(data, reference, tmp_path):
    state = checkpoint.load(reference / "checkpoint.pt")
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run" / "checkpoint.pt", {key: state[key] for key in checkpoint.MODEL_KEYS})
    with pytest.raises(UserError, match="a model alone"):
        run(data, tmp_path / "run", resume=True)


def test_bad_data_stops_before_anything_is_written(tmp_path):
    data = write_dataset(tmp_path / "data")
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = -4
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cannot be trained on(.|\n)*annotation 1 \(image 1\)"):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_annotations_are_read_once(data, tmp_path, monkeypatch):
    """COCO's own, 450 MB of JSON, take many seconds."""
    opened, original = [], io.open

    def noted(file, *rest, **named):
        opened.append(Path(str(file)).name)
        return original(file, *rest, **named)

    monkeypatch.setattr(io, "open", noted)
    run(data, tmp_path / "run", steps=1)
    assert opened.count("instances_train.json") == 1


def test_a_broken_picture_is_named_by_the_worker_that_met_it(tmp_path):
    data = write_dataset(tmp_path / "data")
    picture = data / "train" / "3.png"
    picture.write_bytes(picture.read_bytes()[:900])
    with pytest.raises(UserError, match=r"3\.png") as caught:
        run(data, tmp_path / "run", workers=1)
    assert "Traceback" not in str(caught.value)


def test_fp16_needs_a_gpu(data, tmp_path):
    with pytest.raises(UserError, match="amp=fp16 needs a CUDA GPU"):
        run(data, tmp_path / "run", amp="fp16")


# ---------------------------------------------------------------- losses that are not finite


def spoil(monkeypatch, term, value, step):
    """Let one loss term come out as `value` in one step (from 1)."""
    original, count = MaskRCNN.run, iter(range(1, 1000))

    def spoiled(model, *arguments, **named):
        output = original(model, *arguments, **named)
        if next(count) == step:
            output.losses[term] = output.losses[term] * value
        return output

    monkeypatch.setattr(MaskRCNN, "run", spoiled)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(data, reference, tmp_path, monkeypatch, value):
    spoil(monkeypatch, "loss_mask", value, step=6)
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run")
    said = str(caught.value)
    assert f"step 6: loss_mask is {value} (pictures [" in said
    assert "loss_box_reg" not in said
    assert f"--set lr={tiny_config().recipe.lr / 4:g}" in said and "data check" in said
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 4
    assert all(v.isfinite().all() for v in state["model"].values())
    assert losses(tmp_path / "run") == losses(reference)[:5]
    monkeypatch.undo()  # the cause is gone: the run can go on
    run(data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reference)


def test_a_loss_that_is_not_finite_where_a_checkpoint_is_due(data, tmp_path, monkeypatch):
    spoil(monkeypatch, "loss_classifier", math.nan, step=8)
    with pytest.raises(UserError, match="step 8: loss_classifier is nan"):
        run(data, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4


def test_a_learning_rate_that_is_far_too_high(data, tmp_path):
    with pytest.raises(UserError, match=r"step \d+: .* is (nan|inf)"):
        run(data, tmp_path / "run", optimizer="sgd", lr=1e20, warmup=0, clip=0.0)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_while_saving(data, reference, tmp_path, monkeypatch):
    original = torch.save

    def save(state, file):
        if state["step"] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(state, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"checkpoint\.pt.*No space left on device.*before it is whole"):
        run(data, tmp_path / "run")
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["step"] == 4
    run(data, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(reference)


# ---------------------------------------------------------------- a time limit


class Clock:
    """Stands in for the module `time`: a step takes a second, the 30th and later ones 0.9."""

    def __init__(self, monkeypatch):
        self.now, self.steps = 100.0, 0
        monkeypatch.setattr(train, "time", self)
        original = train.train_step

        def step(*arguments):
            self.steps += 1
            self.now += 1.0 if self.steps < 30 else 0.9
            return original(*arguments)

        monkeypatch.setattr(train, "train_step", step)

    def monotonic(self):
        return self.now


def test_a_time_limit_fixes_the_number_of_steps(data, tmp_path, monkeypatch, capsys):
    Clock(monkeypatch)
    run(data, tmp_path / "run", limit=50.0, checkpoint_every=1000)
    lines, recipe = read_log(tmp_path / "run" / "log.jsonl"), tiny_config().recipe
    steps = 23 + int((50 - 23) / (1 + MARGIN))
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines[-1]["elapsed"] <= 50.0
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["steps"] == steps
    peak = [learning_rate(step, recipe, math.inf) for step in range(23)]
    rest = [learning_rate(step, recipe, steps) for step in range(23, steps)]
    assert [line["lr"] for line in lines] == peak + rest
    assert rest[-1] < 0.03 * recipe.lr  # the straight line has come to its end
    assert f"steps: {steps}, which fit into 50 s" in capsys.readouterr().out


def test_a_time_limit_is_kept_by_a_resumed_run(data, tmp_path, monkeypatch):
    """The number of steps is written down as soon as it is fixed, and outlives another limit."""
    clock = Clock(monkeypatch)
    run(data, tmp_path / "whole", limit=40.0, checkpoint_every=1000)
    monkeypatch.undo()

    def die():
        raise RuntimeError

    clock = Clock(monkeypatch)
    at_step(monkeypatch, 27, die)
    with pytest.raises(RuntimeError):
        run(data, tmp_path / "parts", limit=40.0, checkpoint_every=1000)
    assert checkpoint.load(tmp_path / "parts" / "checkpoint.pt")["step"] == 23
    monkeypatch.undo()
    clock = Clock(monkeypatch)
    run(data, tmp_path / "parts", limit=9999.0, checkpoint_every=1000, resume=True)
    assert clock.steps == int((40 - 23) / (1 + MARGIN))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_time_limit_shorter_than_the_measurement(data, tmp_path, monkeypatch):
    Clock(monkeypatch)
    run(data, tmp_path / "run", limit=10.0)
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert 8 <= len(lines) <= 10
    assert lines[-1]["elapsed"] <= 10.0


# ---------------------------------------------------------------- the optimiser


def small_network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return body.to(memory_format=torch.channels_last)


def test_parameter_groups():
    network = small_network()
    network[3].bias.requires_grad_(False)
    recipe = replace(tiny_config().recipe, weight_decay=0.5, norm_weight_decay=0.25)
    groups = parameter_groups(network, recipe)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.25]
    sets = [{id(p) for p in group["params"]} for group in groups]
    assert sets[0] == {id(p) for p in (network[0].weight, network[0].bias, network[3].weight)}
    assert sets[1] == {id(p) for p in network[1].parameters()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_fused_optimiser_computes_what_the_plain_one_does(name):
    recipe = replace(
        tiny_config().recipe, optimizer=name, momentum=0.9, weight_decay=0.1, norm_weight_decay=0.1
    )
    ours, theirs = small_network(), small_network()
    kinds = {"sgd": lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, foreach=False)}
    kinds["adamw"] = lambda p: torch.optim.AdamW(
        p, betas=(0.9, recipe.beta2), weight_decay=0.1, foreach=False
    )
    fused, plain = build_optimizer(ours, recipe), kinds[name](theirs.parameters())
    for step in range(4):
        picture = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        for network, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            network(picture).square().mean().backward()
        update(fused, torch.amp.GradScaler("cpu", enabled=False), 0.1 / (step + 1), torch.tensor(False))
        plain.param_groups[0]["lr"] = 0.1 / (step + 1)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_skipped_update_leaves_no_trace(name, good_steps):
    """Weights, momentum and step counts are as if the bad step had never been, also if it is the first."""
    recipe = replace(tiny_config().recipe, optimizer=name)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    skipping, never = small_network(), small_network()
    a, b = build_optimizer(skipping, recipe), build_optimizer(never, recipe)

    def step(network, optimizer, spoilt):
        optimizer.zero_grad()
        loss = network(torch.ones(1, 3, 9, 9)).square().sum() * (math.nan if spoilt else 1.0)
        loss.backward()
        update(optimizer, scaler, 0.1, skip=~loss.detach().isfinite())

    for _ in range(good_steps):
        step(skipping, a, False)
        step(never, b, False)
    step(skipping, a, True)
    for _ in range(2):
        step(skipping, a, False)
        step(never, b, False)
    for p, q in zip(skipping.parameters(), never.parameters(), strict=True):
        assert torch.equal(p, q)
