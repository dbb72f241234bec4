"""The command line: what it says, what it leaves, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_config, typed, write_dataset
from torch.distributed.run import parse_args

from minimrcnn import __main__ as cli
from minimrcnn.engine import checkpoint

COMMANDS = [
    [],
    ["train"],
    ["evaluate"],
    ["predict"],
    ["data"],
    ["data", "toybox"],
    ["data", "coco"],
    ["data", "nuclei"],
    ["data", "check"],
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures to train on, and the same to validate with."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "set")
    shutil.copytree(folder / "train", folder / "val")
    shutil.copy(
        folder / "annotations" / "instances_train.json", folder / "annotations" / "instances_val.json"
    )
    return folder


def train(data: Path, out: Path, *more: str) -> int:
    return cli.main(
        [
            "train",
            "--data",
            str(data),
            "--config",
            "mini",
            "--out",
            str(out),
            "--device",
            "cpu",
            *typed(tiny_config(steps=2, warmup=1)),
            *more,
        ]
    )


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    assert train(data, out) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- what goes right


def test_train_leaves_a_whole_run(run: Path) -> None:
    assert set(files(run)) == {
        *("checkpoint.pt", "config.json", "log.jsonl"),
        *("metrics.json", "curves.png", "gallery.png"),
    }
    metrics = json.loads((run / "metrics.json").read_text())
    for kind in ("bbox", "segm"):
        assert len(metrics[kind]) == 12 and all(-1 <= value <= 1 for value in metrics[kind].values())
    assert list(metrics["per_category"]) == ["square", "wide"]
    assert metrics["images"] == 6 and metrics["steps"] == 2
    assert metrics["seconds"]["training"] > 0 and metrics["seconds"]["evaluation"] > 0
    assert metrics["machine"]["threads"] >= 1 and metrics["machine"]["device"]
    for name in ("curves.png", "gallery.png"):
        with Image.open(run / name) as image:
            assert image.width == 1100


def test_train_ends_with_the_table_and_what_to_open(
    data: Path, run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(data, run, "--resume") == 0  # nothing left to train: it evaluates again
    printed = capsys.readouterr().out
    assert "AP50" in printed and "square" in printed
    assert str(run / "gallery.png") in printed.splitlines()[-3]


def test_without_a_val_split(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(data, tmp_path / "set")
    (tmp_path / "set" / "annotations" / "instances_val.json").unlink()
    (tmp_path / "run").mkdir()
    for name in ("checkpoint.pt", "config.json", "log.jsonl"):
        shutil.copy(run / name, tmp_path / "run")
    assert train(tmp_path / "set", tmp_path / "run", "--resume") == 0
    assert "curves.png" in files(tmp_path / "run") and "metrics.json" not in files(tmp_path / "run")
    assert "has no split val" in capsys.readouterr().out


def test_evaluate_agrees_with_the_run(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = files(run)
    out = tmp_path / "new" / "val.json"
    assert (
        cli.main(["evaluate", "--run", str(run), "--data", str(data), "--device", "cpu", "--out", str(out)])
        == 0
    )
    found, trained = json.loads(out.read_text()), json.loads(before["metrics.json"])
    assert {k: found[k] for k in ("bbox", "segm", "per_category")} == {
        k: trained[k] for k in ("bbox", "segm", "per_category")
    }
    assert "AR100" in capsys.readouterr().out
    assert files(run) == before


def test_predict(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = [str(data / "val" / "1.png"), str(tmp_path / "no.jpg"), str(data / "val" / "2.png")]
    status = cli.main(["predict", "--run", str(run), *pictures, "--out", str(tmp_path), "--device", "cpu"])
    output = capsys.readouterr()
    assert status == 2 and f"minimrcnn: The picture {tmp_path / 'no.jpg'} is missing" in output.err
    assert "2 of 3 pictures done" in output.out
    assert set(files(tmp_path)) == {"1.png", "2.png", "predictions.json"}
    assert (
        cli.main(["predict", "--run", str(run), pictures[0], "--out", str(tmp_path), "--device", "cpu"]) == 0
    )


def test_data_check(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["data", "check", str(data)]) == 0
    shutil.copytree(data, tmp_path / "set")
    (tmp_path / "set" / "val" / "1.png").unlink()
    assert cli.main(["data", "check", str(tmp_path / "set"), "--split", "train"]) == 0
    assert cli.main(["data", "check", str(tmp_path / "set")]) == 1
    assert "image 1" in capsys.readouterr().out


def test_data_toybox(tmp_path: Path) -> None:
    command = [
        "data",
        "toybox",
        "--out",
        str(tmp_path / "toys"),
        "--train",
        "2",
        "--val",
        "1",
        "--size",
        "96",
    ]
    assert cli.main(command) == 0
    content = json.loads((tmp_path / "toys" / "annotations" / "instances_train.json").read_text())
    assert [image["width"] for image in content["images"]] == [96, 96]
    assert len(list((tmp_path / "toys" / "val").iterdir())) == 1
    assert cli.main(command) == 2  # it is there: nothing is drawn over it


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(" ".join(["usage: python -m minimrcnn", *command]))
    if command not in ([], ["data"]):
        assert f"  python -m minimrcnn {' '.join(command)} " in text.partition("example:")[2]


# ---------------------------------------------------------------- what goes wrong


def failing(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run it; it must end with status 2 and one message, which is returned."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    bars, found, message = capsys.readouterr().err.rpartition("minimrcnn: ")  # progress bars go to stderr too
    assert found and "Traceback" not in bars + message
    return message


def test_bad_arguments(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def start(config: str, *more: str) -> list[str]:
        return ["train", "--data", str(data), "--config", config, "--out", str(tmp_path / "new"), *more]

    assert "Did you mean mini?" in failing(start("mimi"), capsys)
    assert "Did you mean batch_size?" in failing(start("mini", "--set", "batchsize=2"), capsys)
    assert "whole number" in failing(start("mini", "--set", "batch_size=two"), capsys)
    assert "--device" in failing(start("mini", "--device", "abacus"), capsys)
    assert not (tmp_path / "new").exists()
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in failing(["evaluate", "--run", nowhere, "--data", str(data)], capsys)
    assert nowhere in failing(["evaluate", "--run", str(run), "--data", nowhere], capsys)
    assert "'test'" in failing(
        ["evaluate", "--run", str(run), "--data", str(data), "--split", "test"], capsys
    )
    assert nowhere in failing(["predict", "--run", nowhere, "a.png", "--out", str(tmp_path)], capsys)
    assert nowhere in failing(["data", "check", nowhere], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["train", "--data", "x"], "required: --config, --out"),
        (
            ["train", "--data", "x", "--config", "mini", "--out", "y", "--time-limit", "soon"],
            "'soon' is not 1 or more",
        ),
        (["predict", "--run", "x", "a.png", "--out", "y", "--score", "50"], "'50' is not between 0 and 1"),
        (["evaluate", "--data", "x"], "one of the arguments --run --weights is required"),
        (["evaluate", "--data", "x", "--run", "y", "--batch-size", "0"], "'0' is not 1 or more"),
        (["--verson"], "--verson: no such option."),
        (["train", "--dta", "x"], "train: error: --dta: no such option. Did you mean --data?"),
        (
            ["train", "--resume", "--quickly"],
            "--quickly: no such option. There are: --help, --data, --config,",
        ),
        (
            ["evaluate", "--data", "x", "--run", "y", "--spilt=val"],
            "--spilt: no such option. Did you mean --split?",
        ),
        (["predict", "a.png", "--rum", "x"], "--rum: no such option. Did you mean --run?"),
        (
            ["data", "toybox", "--sise", "64"],
            "data toybox: error: --sise: no such option. Did you mean --size?",
        ),
        (
            ["data", "check", "x", "--splt", "val"],
            "data check: error: --splt: no such option. Did you mean --split?",
        ),
        (["exercises", "start", "x", "--force"], "--force: no such option. There are: --help."),
        (["grade", "x", "--out", "y", "--onyl", "03"], "--onyl: no such option. Did you mean --only?"),
        (["data", "check", "x", "--", "--splt"], "unrecognized arguments: --splt"),  # a name, not an option
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_option_may_be_shortened(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert "'test'" in failing(["data", "check", str(data), "--sp", "test"], capsys)


def test_another_data_set_is_refused(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(data, tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"wide"', '"narrow"'))
    message = failing(["evaluate", "--run", str(run), "--data", str(tmp_path / "set")], capsys)
    assert "7 'narrow' (in the model: 'wide')" in message and "reset_heads" in message


def test_a_bad_picture(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(data, tmp_path / "set")
    bad = tmp_path / "set" / "val" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    before = files(run)
    out = tmp_path / "m.json"
    out.write_text("{}")
    command = [
        "evaluate",
        "--run",
        str(run),
        "--data",
        str(tmp_path / "set"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    message = failing(command, capsys)
    assert str(bad) in message and "DataLoader" not in message
    assert out.read_text() == "{}" and files(run) == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_torchrun_accepts_what_the_help_shows(command: str, capsys: pytest.CaptureFixture) -> None:
    """It reads --run as an abbreviation of its own --run-path, unless a -- goes before."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  torchrun "))
    given = parse_args(line.split()[1:])
    assert given.module and given.training_script == "minimrcnn"
    cli.parser().parse_args(given.training_script_args)


def test_torchrun_needs_the_two_dashes(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_args(["-m", "minimrcnn", "evaluate", "--run", "runs/coco", "--data", "data/coco"])
    assert "ambiguous option: --run could match --run-path" in capsys.readouterr().err


def test_evaluate_says_whose_parts_it_uses(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = checkpoint.load(run / "checkpoint.pt")
    checkpoint.save(tmp_path / "checkpoint.pt", {**state, "parts": ["iou", "nms"]})
    assert cli.main(["evaluate", "--run", str(tmp_path), "--data", str(data), "--device", "cpu"]) == 0
    assert "trained with your own iou, nms; here the package's are used" in capsys.readouterr().err


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minimrcnn.datasets.check.check_dataset", interrupted)
    assert cli.main(["data", "check", "anything"]) == 130
    assert capsys.readouterr().err == "minimrcnn: interrupted\n"


def test_matplotlib_is_asked_for_before_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    find = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert train(data, tmp_path / "run") == 2
    assert "pip install matplotlib" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert train(data, tmp_path / "run", "--no-evaluate") == 0
    assert set(files(tmp_path / "run")) == {"checkpoint.pt", "config.json", "log.jsonl"}


def test_the_program(tmp_path: Path) -> None:
    """As a shell sees it: the status, one message on stderr, nothing on stdout."""
    command = [sys.executable, "-m", "minimrcnn", "data", "check", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("minimrcnn: There is no data set at") and "Traceback" not in done.stderr


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is not the user's mistake: it must not be made to look like one."""
    monkeypatch.setattr("minimrcnn.datasets.check.check_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["data", "check", "anything"])
