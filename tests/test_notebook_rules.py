"""The rules for notebooks find the faults that they are for, and pass what is right."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import notebook_rules as rules
import pytest
from classroom_notebooks import exercise_notebook, hand_in
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval_run import run_nbval

from minimrcnn.classroom.execute import METADATA, execute, tidy
from minimrcnn.show.source import source

HERE = rules.ROOT / "notebooks" / "03_x.ipynb"


def _stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def _notebook(*outputs: NotebookNode, source: str = "1", prose: str = "Text.") -> NotebookNode:
    cell = new_code_cell(source, id="code", outputs=list(outputs), execution_count=1)
    return new_notebook(cells=[new_markdown_cell(prose, id="text"), cell], metadata=METADATA)


def _png(width: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, 10, 8, 2, 0, 0, 0)
    return base64.b64encode(head).decode()


def _picture(width: int = 800, alt: str = "A ring and a key, each under its mask") -> NotebookNode:
    data = {"image/png": _png(width), "text/plain": "2 objects, IoU 0.81"}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": alt}})


ALL = (rules.form_problems, rules.order_problems, rules.output_problems, rules.figure_problems)


def test_a_right_notebook_has_no_problems() -> None:
    notebook = _notebook(_picture(), _stream("IoU 0.81\n"))
    assert [problem for rule in ALL for problem in rule(notebook)] == []


# ---------------------------------------------------------------- form, order, outputs


def test_finds_a_cell_id_that_occurs_twice() -> None:
    notebook = _notebook()
    notebook.cells[0]["id"] = "code"
    assert any("'code' occurs twice" in problem for problem in rules.form_problems(notebook))


def test_finds_a_notebook_without_ids() -> None:
    notebook = _notebook()
    notebook.nbformat_minor = 4
    assert any("before 4.5" in problem for problem in rules.form_problems(notebook))


def test_finds_another_kernel_and_its_version() -> None:
    notebook = _notebook()
    notebook.metadata = NotebookNode(kernelspec={"name": "torch-env"}, language_info={"version": "3.11.7"})
    assert len(rules.form_problems(notebook)) >= 2


def test_finds_cells_run_out_of_order() -> None:
    notebook = _notebook()
    notebook.cells[1].execution_count = 7
    assert rules.order_problems(notebook) == ["execution counts are [7]"]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (_stream("UserWarning: deprecated", "stderr"), "writes on stderr"),
        (new_output("error", ename="ValueError", evalue="no", traceback=[]), "ends with ValueError"),
        (_stream("saved /home/ana/x.png"), "prints '/home/ana/x.png'"),
        (_stream("<function f at 0x7f3a12b4c0>"), "prints 'at 0x7f3a12b4c0>'"),
        (
            new_output("execute_result", data={"text/plain": "<Figure size 640x480 with 1 Axes>"}),
            "prints '<Fig",
        ),
        (new_output("execute_result", data={"text/plain": "[<matplotlib.lines.Line2D>]"}), "prints '[<mat"),
        (new_output("display_data", data={rules.WIDGET: {"model_id": "1"}}), "holds a widget"),
    ],
)
def test_finds_outputs_that_should_not_be(output: NotebookNode, told: str) -> None:
    (problem,) = rules.output_problems(_notebook(output))
    assert told in problem


def test_an_expected_error_is_tagged_and_comes() -> None:
    notebook = _notebook(new_output("error", ename="ValueError", evalue="no", traceback=[]))
    notebook.cells[1].metadata["tags"] = ["raises-exception"]
    assert rules.output_problems(notebook) == []
    notebook.cells[1].outputs = []
    assert rules.output_problems(notebook) == ["cell code is tagged raises-exception and raises nothing"]


# ---------------------------------------------------------------- figures


def test_finds_a_figure_without_alt_text() -> None:
    problems = rules.figure_problems(_notebook(_picture(alt=""), _stream("IoU 0.5")))
    assert problems == ["cell code: a figure without alt text"]


def test_finds_a_figure_that_is_too_wide() -> None:
    assert "1200 pixels wide" in rules.figure_problems(_notebook(_picture(width=1200)))[0]


def test_finds_a_figure_without_numbers() -> None:
    missing = ["cell code: no line of numbers under the figure"]
    assert rules.figure_problems(_notebook(_picture())) == missing  # its own text/plain is not shown
    assert rules.figure_problems(_notebook(_stream("IoU 0.5"), _picture())) == missing
    assert rules.figure_problems(_notebook(_picture(), _stream("IoU 0.5"))) == []


# ---------------------------------------------------------------- links and names


def _links(prose: str) -> list[str]:
    return rules.link_problems(HERE, _notebook(prose=prose))


def test_links_to_what_exists() -> None:
    assert _links("[a](../minimrcnn/boxes.py), [b](https://x.org), [c](../README.md 'title')") == []
    assert _links("## A `big` box\n[above](#A-big-box)") == []


@pytest.mark.parametrize(
    "prose",
    [
        "[a](../minimrcnn/boxen.py)",
        "![A ring and a key under their masks](figures/none.png)",
        '<a href="99_end.ipynb">next</a>',
        "## Boxes\n[above](#Anchors)",
    ],
)
def test_finds_links_that_lead_nowhere(prose: str) -> None:
    (problem,) = _links(prose)
    assert "leads nowhere" in problem or "no such heading" in problem


def test_finds_a_picture_without_words() -> None:
    assert _links("![](../data/toybox_sheet.png)") == ["the picture ../data/toybox_sheet.png has no alt text"]


def _names(prose: str, source: str = "1") -> list[str]:
    return rules.name_problems(HERE, _notebook(prose=prose, source=source))


@pytest.mark.parametrize(
    "name",
    [
        *("boxes.py", "minimrcnn/boxes.py", "roi_ops/align.py", "README.md", "minimrcnn/roi_ops/"),
        *(
            "model.py: MaskRCNN.run",
            "minimrcnn.boxes.iou",
            "minimrcnn.maskrcnn_resnet50_fpn(...)",
            "boxes.iou",
        ),
        *(
            "iou(a, b)",
            "torch.where",
            "nonzero()",
            "print()",
            "x = 3",
            "(B, K, 4)",
            "log.jsonl",
            "aligned=False",
        ),
    ],
)
def test_names_that_exist(name: str) -> None:
    assert _names(f"See `{name}`.") == []


@pytest.mark.parametrize(
    "name",
    [
        *("boxen.py", "minimrcnn/roi.py", "minimrcnn/roi/", "99_end.ipynb", "boxes.py: intersect_over"),
        *("minimrcnn.boxes.intersect_over", "boxes.intersect_over(a, b)", "intersect_over(a, b)"),
    ],
)
def test_finds_names_that_do_not_exist(name: str) -> None:
    (problem,) = _names(f"See `{name}`.")
    assert problem.startswith(f"`{name}`: ")


def test_names_of_the_notebook_itself_exist() -> None:
    assert _names("Now `my_iou(a, b)` and `boxes.shape[0]`.", "boxes = 1\ndef my_iou(a, b): pass") == []


def test_fenced_code_is_not_looked_at() -> None:
    assert _names("```\nintersect_over(a) `b.py`\n```") == []


# ---------------------------------------------------------------- show_source


def _shown(code: str) -> NotebookNode:
    from minimrcnn import boxes

    shown = source(boxes.iou)
    shown.code = code or shown.code
    data, metadata = shown._repr_mimebundle_()
    return _notebook(new_output("display_data", data=data, metadata=metadata))


def test_finds_source_that_has_changed_since() -> None:
    assert rules.source_problems(_shown("")) == []
    (problem,) = rules.source_problems(_shown("def iou(a, b):\n    return a < b\n"))
    assert "older minimrcnn/boxes.py: iou" in problem


def test_finds_source_that_is_gone() -> None:
    notebook = _shown("")
    notebook.cells[1].outputs[0].data["text/plain"] = "minimrcnn/boxes.py: intersect_over"
    assert "not there any more" in rules.source_problems(notebook)[0]


# ---------------------------------------------------------------- nbval, on notebooks of ours


def _executed(path: Path, *sources: str) -> Path:
    cells = [new_code_cell(source, id=f"c{i}") for i, source in enumerate(sources)]
    hand_in(path.parent, new_notebook(cells=cells, metadata=METADATA), path.name)
    execute(path, timeout=60)
    return path


@pytest.mark.slow
def test_nbval_is_strict_about_text_and_lenient_about_time(tmp_path: Path) -> None:
    show = (
        "from minimrcnn import boxes\nfrom minimrcnn.show.source import show_source\nshow_source(boxes.iou)"
    )
    path = _executed(
        tmp_path / "a.ipynb", "import time, sys\nprint(1)", "print(f'{time.time() % 60:.3f} s')", show
    )
    text = path.read_text(encoding="utf-8")
    assert text.count("iou</b>") == 1
    path.write_text(text.replace('"1\\n"', '"2\\n"').replace("iou</b>", "old iou</b>"), encoding="utf-8")
    assert run_nbval(path, tmp_path).failed == [0]


@pytest.mark.slow
def test_nbval_rejects_a_warning(tmp_path: Path) -> None:
    path = _executed(tmp_path / "a.ipynb", "print('quiet')", "import sys\nprint('beware', file=sys.stderr)")
    text = path.read_text(encoding="utf-8").replace('"name": "stderr"', '"name": "stdout"')
    path.write_text(text, encoding="utf-8")
    assert rules.output_problems(rules.nbformat.read(path, as_version=4)) == []
    assert run_nbval(path, tmp_path).failed == [1]


@pytest.mark.slow
def test_an_exercise_fails_at_its_checks_alone(tmp_path: Path) -> None:
    notebook = exercise_notebook()
    notebook.cells.pop()  # the long sleep
    tidy(notebook)
    hand_in(tmp_path, notebook)
    assert run_nbval(tmp_path / "01_doubling.ipynb", tmp_path, lax=True).failed == [2, 4]
