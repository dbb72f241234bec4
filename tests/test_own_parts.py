"""Parts of one's own in training: the fit are used, the unfit replaced by name; a run keeps to its choice."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
import torchvision
from tiny import tiny_config, write_dataset

from minimrcnn import losses, per_image, weights
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.engine import checkpoint, evaluate, train
from minimrcnn.engine.distributed import Group
from minimrcnn.engine.log import read_log
from minimrcnn.engine.own_parts import ROWS, inputs, own_names, unfit, usable_parts
from minimrcnn.errors import UserError
from minimrcnn.parts import DEFAULT, Parts

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums of more threads may be in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(name: str):
    """The package's part as if it were one's own, and the list of its calls."""
    calls = []

    def part(*arguments):
        calls.append(name)
        return getattr(DEFAULT, name)(*arguments)

    return part, calls


def blind_mask_loss(logits, labels, targets):
    rows = torch.arange(len(labels))
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.detach()[rows, labels], targets)


# ---------------------------------------------------------------- one part


def test_every_part_has_its_trial():
    assert list(ROWS) == [field.name for field in fields(Parts)]


@pytest.mark.parametrize("name", list(ROWS))
def test_the_packages_parts_are_fit(name):
    part, calls = counted(name)
    assert unfit(name, part, CPU) == ""
    assert len(calls) >= 3
    assert unfit(name, getattr(DEFAULT, name), CPU) == ""


@pytest.mark.parametrize(
    ("name", "function"), [("nms", torchvision.ops.nms), ("roi_align", torchvision.ops.roi_align)]
)
def test_a_lifted_part_is_fit(name, function):
    assert unfit(name, per_image(name, function), CPU) == ""


@pytest.mark.parametrize("name", ["roi_align", "mask_loss"])
@pytest.mark.parametrize("spoil", [lambda answer: answer.detach(), lambda answer: answer * 0])
def test_a_part_that_hides_the_gradient(name, spoil):
    assert unfit(name, lambda *a: spoil(getattr(DEFAULT, name)(*a)), CPU) == "has no gradient"


def test_only_parts_that_the_loss_goes_through_need_a_gradient():
    assert unfit("decode", lambda *a: DEFAULT.decode(*a).detach(), CPU) == ""


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_part_that_is_too_slow_is_given_up_early():
    part, calls = counted("match")

    def slow(overlap, *rest):
        busy(3e-5 * overlap.shape[-1])  # 0.017, 0.07, 0.28 s
        return part(overlap, *rest)

    assert unfit("match", slow, CPU, seconds=0.04).startswith("is too slow: it needs more than 0.04 s")
    assert len(calls) == 3  # once on a sixteenth, twice on a quarter
    assert unfit("match", slow, CPU, seconds=5.0) == ""


def test_a_slow_first_call_is_forgiven():
    part, calls = counted("iou")

    def loads_something(*arguments):
        busy(0.0 if calls else 0.2)
        return part(*arguments)

    assert unfit("iou", loads_something, CPU) == ""


def test_a_part_that_fails_is_named():
    with pytest.raises(UserError, match=r"your own iou fails in the model: ZeroDivisionError: division"):
        unfit("iou", lambda *_: 1 / 0, CPU)


@pytest.mark.parametrize(
    ("part", "given"),
    [
        (lambda *a: DEFAULT.iou(*a).mT, r"a tensor \(1, 575, 8\)"),
        (lambda *a: DEFAULT.iou(*a).tolist(), "list"),
    ],
)
def test_an_answer_of_another_shape_is_named(part, given):
    with pytest.raises(UserError, match=rf"your own iou gives the model {given}, and a tensor \(1, 8, 575\)"):
        unfit("iou", part, CPU)


def test_trials_are_repeatable():
    for a, b in zip(inputs("roi_align", 6, CPU)[0], inputs("roi_align", 6, CPU)[0], strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- all parts


def test_the_packages_parts_need_no_word(capsys):
    assert usable_parts(DEFAULT, ALONE) is DEFAULT
    assert capsys.readouterr().out == ""


def test_unfit_parts_are_replaced_by_name(capsys):
    own = replace(DEFAULT, iou=counted("iou")[0], mask_loss=per_image("mask_loss", blind_mask_loss))
    usable = usable_parts(own, ALONE)
    assert usable == replace(DEFAULT, iou=own.iou)
    assert capsys.readouterr().out.splitlines() == [
        "mask_loss: yours has no gradient; the package's is used in its place",
        "parts of your own: iou",
    ]


def test_all_processes_do_as_the_first():
    @dataclass(frozen=True)
    class Second(Group):
        """Hears from the first process that it found the part too slow."""

        def firsts(self, value):
            assert value == {"iou": ""}
            return {"iou": "is too slow"}

    assert usable_parts(replace(DEFAULT, iou=counted("iou")[0]), Second(1, 2, CPU)) == DEFAULT


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four pictures, to train on and to validate with."""
    folder = write_dataset(tmp_path_factory.mktemp("tiny") / "data", pictures=4)
    (folder / "val").symlink_to(folder / "train")
    annotations = folder / "annotations"
    shutil.copy(annotations / "instances_train.json", annotations / "instances_val.json")
    return folder


def run(data: Path, out: Path, parts: Parts = DEFAULT, resume: bool = False) -> list[dict]:
    """Train six steps; what the log holds of the arithmetic."""
    train.train(tiny_config(steps=6), data, out, resume=resume, device="cpu", parts=parts)
    timed = ("images_per_second", "elapsed")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_log(out / "log.jsonl")]


def test_a_run_with_parts_of_ones_own(data, tmp_path, monkeypatch, capsys):
    """It trains with them, stops, resumes with the same, and is evaluated with them."""
    (iou, iou_calls), (nms, nms_calls) = counted("iou"), counted("nms")
    own = replace(DEFAULT, iou=iou, nms=nms, mask_loss=per_image("mask_loss", blind_mask_loss))
    original = train.train_step

    def step(run, *arguments):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(run, *arguments)

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "own", own)
    monkeypatch.undo()
    said = capsys.readouterr().out
    assert "mask_loss: yours has no gradient" in said and "parts of your own: iou, nms\n" in said
    saved = checkpoint.load(tmp_path / "own" / "checkpoint.pt")
    assert (saved["step"], saved["parts"]) == (3, ["iou", "nms"])

    before = (tmp_path / "own" / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"own was trained with parts of your own, and nms is not given"):
        run(data, tmp_path / "own", replace(DEFAULT, iou=iou), resume=True)
    assert (tmp_path / "own" / "checkpoint.pt").read_bytes() == before

    iou_calls.clear()
    found = run(data, tmp_path / "own", own, resume=True)
    assert found == run(data, tmp_path / "default")
    assert len(iou_calls) == 2 * 3  # for anchors and for proposals, in each of the three steps
    said = capsys.readouterr().out
    assert "mask_loss: this run began with the package's and goes on with it" in said

    saved = checkpoint.load(tmp_path / "own" / "checkpoint.pt")
    dataset = CocoDataset(*find_split(data, "val"))
    metrics = []
    for parts in (own, DEFAULT):
        nms_calls.clear()
        model, class_map = weights.from_checkpoint(saved, parts)
        assert class_map == dataset.class_map
        metrics.append(evaluate.evaluate(model, dataset, batch_size=2, device="cpu", workers=0))
        assert bool(nms_calls) == (parts is own)
    assert metrics[0] == metrics[1]


def test_a_run_without_them_says_nothing(data, tmp_path, capsys):
    run(data, tmp_path / "run")
    assert "parts" not in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / "checkpoint.pt")["parts"] == []


def test_own_names():
    assert own_names(DEFAULT) == own_names(Parts()) == []
    assert own_names(replace(DEFAULT, paste=lambda *_: 0, mask_loss=losses.mask_loss)) == ["paste"]
