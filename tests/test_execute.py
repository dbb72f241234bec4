"""Stored outputs come from one run on a fresh kernel, and a notebook that fails stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from classroom_notebooks import hand_in
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minimrcnn.classroom.execute import METADATA, WIDGET, main, store_seconds, tidy


def _notebook(*sources: str) -> NotebookNode:
    cells = [new_code_cell(source, id=f"c{i}") for i, source in enumerate(sources)]
    return new_notebook(cells=[new_markdown_cell("# Text", id="text"), *cells])


def test_takes_out_what_changes_from_run_to_run() -> None:
    notebook = _notebook("1")
    notebook.metadata = NotebookNode(
        kernelspec={"name": "mine"}, language_info={"version": "3.11.7"}, widgets={"state": {}}
    )
    cell = notebook.cells[1]
    cell.metadata |= {"execution": {"iopub.execute_input": "2026"}, "collapsed": True, "tags": ["kept"]}
    cell.outputs = [new_output("display_data", data={WIDGET: {"model_id": "17"}, "text/plain": "a slider"})]
    tidy(notebook)
    assert notebook.metadata == METADATA
    assert cell.metadata == {"tags": ["kept"]}
    assert cell.outputs[0].data == {"text/plain": "a slider"}
    assert [cell.id for cell in notebook.cells] == ["text", "c0"]


def test_what_is_printed_in_one_go_is_one_output() -> None:
    notebook = _notebook("1")
    pieces = [
        ("stdout", "above "),
        ("stdout", "it"),
        (None, ""),
        ("stdout", "un"),
        ("stdout", "der"),
        ("stderr", "!"),
    ]
    notebook.cells[1].outputs = [
        new_output("stream", name=name, text=text) if name else new_output("display_data")
        for name, text in pieces
    ]
    tidy(notebook)
    outputs = notebook.cells[1].outputs
    assert [output.get("text") for output in outputs] == ["above it", None, "under", "!"]
    assert [output.get("name") for output in outputs] == ["stdout", None, "stdout", "stderr"]


@pytest.mark.slow
def test_stores_the_outputs_of_those_that_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "notebooks"
    stale = _notebook("import os, sys", "print(os.path.basename(os.getcwd()), sys.argv is not None)", "2 + 2")
    stale.cells[3].outputs = [new_output("stream", name="stdout", text="stale")]
    hand_in(folder, stale, "00_good.ipynb")
    hand_in(folder, _notebook("print('before')", "1 / 0"), "01_bad.ipynb")
    hand_in(folder, "{", "02_torn.ipynb")
    before = (folder / "01_bad.ipynb").read_bytes()
    paths = [str(folder / name) for name in ("00_good.ipynb", "01_bad.ipynb", "02_torn.ipynb")]
    assert main([*paths, "--seconds", str(tmp_path / "seconds.json")]) == 1
    done = nbformat.read(folder / "00_good.ipynb", as_version=4)
    assert [cell.execution_count for cell in done.cells[1:]] == [1, 2, 3]
    assert done.cells[2].outputs[0].text == "notebooks True\n"
    assert [output.data for output in done.cells[3].outputs] == [{"text/plain": "4"}]
    assert done.metadata == METADATA
    assert (folder / "01_bad.ipynb").read_bytes() == before
    assert list(json.loads((tmp_path / "seconds.json").read_text())) == ["notebooks/00_good"]
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err
    assert "02_torn.ipynb: cannot be read" in said.err
    assert sorted(str(path) for path in folder.iterdir()) == paths


def test_seconds_of_other_notebooks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    store_seconds(path, {"notebooks/01_a": 12.34, "notebooks/00_b": 5})
    store_seconds(path, {"notebooks/01_a": 13})
    assert json.loads(path.read_text()) == {"notebooks/00_b": 5, "notebooks/01_a": 13}
