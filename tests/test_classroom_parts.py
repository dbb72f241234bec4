"""my_parts: the functions of solved notebooks, as parts of the model; and the pictures of what they do."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from classroom_solution import ANSWERS
from little import little_model, scene

from minimrcnn import Parts, show
from minimrcnn.classroom import my_parts
from minimrcnn.classroom.chapters import all_exercises
from minimrcnn.classroom.harvest import harvest
from minimrcnn.errors import UserError

TOP = {
    "cell_type": "code",
    "source": ["%matplotlib inline\n", "import torch\n", "from minimrcnn.boxes import iou\n"],
}
ALIGN = """
    from torchvision.ops import roi_align as theirs
    return theirs(features, rois, output_size, spatial_scale, sampling_ratio, aligned)"""


def answer(name: str, body: str) -> dict:
    source = f"{all_exercises()[name].stub}\n    {body.strip()}\n"
    return {
        "cell_type": "code",
        "metadata": {"nbgrader": {"solution": True, "grade_id": name}},
        "source": source,
    }


def write(folder: Path, cells: list[dict], name: str = "04_rpn.ipynb") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"cells": cells}))
    return folder


def said(folder: Path, capsys) -> tuple[Parts, dict[str, str]]:
    parts = my_parts(folder)
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("parts are yours:"))
    return parts, {line.split()[0]: line.strip().partition(" ")[2].strip() for line in lines[first:]}


def test_right_functions_are_taken_and_train(tmp_path, capsys):
    cells = [
        TOP,
        {"cell_type": "markdown", "source": "x"},
        answer("nms", ANSWERS["nms"]),
        answer("roi_align", ALIGN),
    ]
    parts, lines = said(write(tmp_path, cells), capsys)
    assert lines["2"] == "of 11 parts are yours:"
    assert lines["nms"] == "yours, from 04_rpn.ipynb" and lines["roi_align"] == "yours, from 04_rpn.ipynb"
    assert lines["iou"] == "the package's (not found in these notebooks)"
    changed = {f.name for f in fields(Parts) if getattr(parts, f.name) is not getattr(Parts(), f.name)}
    assert changed == {"nms", "roi_align"}
    images, targets = scene()
    ours = little_model(parts=parts).run(images, targets, losses=True, key=3).losses
    wanted = little_model().run(images, targets, losses=True, key=3).losses
    for name, loss in wanted.items():
        assert ours[name].item() == pytest.approx(loss.item(), rel=1e-4), name


def test_others_are_not_and_it_is_said_why(tmp_path, capsys):
    no_gradient = ALIGN.replace("return theirs", "return theirs").replace("aligned)", "aligned).detach()")
    cells = [
        TOP,
        answer("iou", "raise NotImplementedError()"),
        answer("nms", "return helper(boxes)"),
        answer("roi_align", no_gradient),
        answer("encode", "return boxes - anchors"),
        answer("decode", "return ("),
    ]
    parts, lines = said(write(tmp_path, cells), capsys)
    assert parts == Parts()
    assert lines["iou"] == "the package's (yours, in 04_rpn.ipynb: not written yet)"
    assert "raises NameError: name 'helper' is not defined (line 8: return helper(boxes))" in lines["nms"]
    deaf = "the package's (yours, in 04_rpn.ipynb: right numbers, but no gradient reaches `features`: "
    assert lines["roi_align"].startswith(deaf)
    assert "yours, in 04_rpn.ipynb: gives " in lines["encode"]
    assert "yours, in 04_rpn.ipynb: is not Python" in lines["decode"]


def test_a_function_that_is_too_slow_to_train_with(tmp_path, capsys):
    waits = "import time\n    until = time.process_time() + 0.4 * (len(boxes) > 100)\n    "
    waits += "while time.process_time() < until: pass\n    " + ANSWERS["nms"].strip()
    parts, lines = said(write(tmp_path, [TOP, answer("nms", waits)]), capsys)
    assert parts == Parts()
    assert lines["nms"].endswith(
        "right, but it is too slow: it needs more than 0.25 s for a picture of 192 pixels)"
    )


def test_a_function_that_fails_in_the_model(tmp_path, capsys):
    fails = "assert len(boxes) < 100, 'too many'\n    " + ANSWERS["nms"].strip()
    _, lines = said(write(tmp_path, [TOP, answer("nms", fails)]), capsys)
    assert lines["nms"].endswith("right, but your own nms fails in the model: AssertionError: too many)")


def test_lists_and_doubles_are_made_fit(tmp_path, capsys):
    lists = ANSWERS["nms"].replace("torch.tensor(kept, dtype=torch.int64)", "kept")
    doubles = "return iou_(a, b, plus_one).double().numpy()"
    top = {
        "cell_type": "code",
        "source": "from minimrcnn.boxes import iou\nfrom minimrcnn.boxes import iou as iou_",
    }
    parts, lines = said(write(tmp_path, [top, answer("nms", lists), answer("iou", doubles)]), capsys)
    assert lines["nms"].startswith("yours")
    # The student's own function has the name of the package's, and takes its place in the later cells only.
    assert lines["iou"].startswith("yours")
    found = parts.iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1]]), 0)
    assert found.dtype == torch.float32 and found.tolist() == [[0.5]]


def test_of_several_notebooks_the_one_that_is_right_counts(tmp_path, capsys):
    write(tmp_path, [TOP, answer("nms", "raise NotImplementedError()")], "04_rpn.ipynb")
    write(tmp_path, [TOP, answer("nms", ANSWERS["nms"])], "04_rpn.newer.ipynb")
    (tmp_path / "notes.ipynb").write_text("no notebook")
    _, lines = said(tmp_path, capsys)
    assert lines["nms"] == "yours, from 04_rpn.newer.ipynb"


def test_only_answers_and_imports_are_run(tmp_path):
    ran = tmp_path / "ran"
    touch = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    cells = [
        TOP,
        {"cell_type": "code", "source": touch},
        {"cell_type": "code", "source": "import no_such_module\ndef given(): return 1"},
{**answer("nms", ""), "source": f"NUMBER = 7\n{touch}\ndef nms(*a):\n    return NUMBER\nprint(undefined)"},
        {"cell_type": "code", "source": "NUMBER = 8"},
    ]  # fmt: skip
    found = harvest(write(tmp_path / "work", cells), {"nms"})
    assert found["nms"][0].function() == 7 and not ran.exists()
    assert "given" not in found["nms"][0].function.__globals__


def test_where_it_looked_is_said_once_and_how_to_look_elsewhere(tmp_path, monkeypatch, capsys):
    another = 'If yours are in another folder, name it: my_parts("my_exercises")'
    monkeypatch.chdir(tmp_path)
    assert my_parts() == Parts()
    assert capsys.readouterr().out.splitlines() == [
        f"0 of 11 parts are yours: no notebook in {tmp_path.resolve()} answers one.",
        another,
    ]
    my_parts(write(tmp_path / "work", [TOP, answer("nms", ANSWERS["nms"])]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f"These are the notebooks in {(tmp_path / 'work').resolve()}", another]
    assert sum("not found in these notebooks" in line for line in printed) == 10


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        my_parts(tmp_path / "nowhere")


# ---------------------------------------------------------------- show.attempt


def _recall(value):
    def recall(proposals, truth, number, threshold):
        return value() if callable(value) else value

    return recall


def test_an_attempt_is_drawn_beside_the_reference():
    def iou(a, b, plus_one=0):
        return all_exercises()["iou"].reference(a, b, plus_one) + 0.125

    a, b, _ = all_exercises()["iou"].cases()[0]
    figure = show.attempt(iou, a, b, 0)
    assert figure.summary == "iou: (5, 7), largest difference to the reference 0.1250"
    yours, wanted, scale = figure.axes
    assert [yours.get_title(), wanted.get_title()] == ["yours", "the reference"]
    assert len(yours.images) == len(wanted.images) == 1 and not scale.images
    assert yours.images[0].get_clim() == wanted.images[0].get_clim()  # one scale for both
    assert len(figure.alt) > 20 and figure.png()[:4] == b"\x89PNG"
    assert figure.get_size_inches()[0] * figure.dpi <= 900


def _stub():
    raise NotImplementedError()


def _fails():
    raise ValueError("$oh$ " * 100)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_recall(_stub), "not written yet"),
        (_recall(None), "not written yet"),
        (_recall(_fails), "raises ValueError: $oh$"),
        (_recall("word"), "gives text where numbers are wanted"),
        (_recall(lambda: torch.zeros(2, 3, 4)), "(2, 3, 4), the reference's shape is ()"),
        (_recall(0.25), "largest difference"),
    ],
)
def test_whatever_the_attempt_does_there_is_a_figure(function, text):
    arguments = all_exercises()["recall"].cases()[0]
    figure = show.attempt(function, *arguments)
    assert figure.summary.startswith("recall: ") and text in figure.summary
    assert figure.png()
    if "not written" in text:
        assert "not written yet" in [t.get_text() for t in figure.axes[0].texts]


def test_an_attempt_without_a_reference_or_at_what_cannot_be_drawn():
    assert "no exercise of this name" in show.attempt(lambda x: x, 3).summary
    assert "no exercise of this name" in show.attempt(None, 3).summary
    figure = show.attempt(
        lambda x: x, 3, reference=lambda x: x, draw=lambda axes, answer: 1 / 0, title="half"
    )
    assert figure.summary == "half: (), largest difference to the reference 0.0000"
    assert "ZeroDivisionError" in figure.axes[0].texts[0].get_text()
    pair = show.attempt(lambda x: (x, [x]), 3, reference=lambda x: (x, [x + 1]), title="pair")
    assert pair.summary == "pair: (), (1,), largest difference to the reference 1.0000"


def test_an_attempt_at_boxes_and_at_rows_of_boxes():
    boxes, scores, threshold = all_exercises()["nms"].cases()[0]

    def nms(boxes, scores, threshold):
        return all_exercises()["nms"].reference(boxes, scores, threshold)[:-1]

    figure = show.attempt(nms, boxes, scores, threshold, draw=show.box_outlines(60, 100, boxes))
    mine, wanted = (len(axes.patches) for axes in figure.axes)
    assert mine == wanted - 1 == len(nms(boxes, scores, threshold))
    one = show.attempt(
        lambda: boxes, reference=lambda: boxes, draw=show.box_outlines(60, 100), title="some boxes"
    )
    assert one.summary == "some boxes: (20, 4), largest difference to the reference 0.0000"
    assert len(one.axes[0].patches) == 20
