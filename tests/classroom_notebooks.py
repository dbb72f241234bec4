"""Small exercise notebooks for the tests of the classroom, with a check of their own that needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

# As strict as a real check and as forgiving: one line, whatever the function does.
SETUP = """
def check(name, function):
    try:
        said = "ok" if all(function(x) == ORACLE[name](x) for x in (1, -2, 3.5)) else "wrong"
    except NotImplementedError:
        said = "not written yet"
    except Exception as error:
        said = f"raises {type(error).__name__}: {error}"
    print(f"{name}: {said}")

ORACLE = {"double": lambda x: 2 * x, "negate": lambda x: -x}
""".strip()
STUB = "def {name}(x):\n    # YOUR CODE HERE\n    raise NotImplementedError()"
RIGHT = {"double": "def double(x):\n    return x + x", "negate": "def negate(x):\n    return 0 - x"}


def answer_cell(name: str) -> NotebookNode:
    """A cell for a student to write in."""
    about = {
        "nbgrader": {"grade_id": f"{name}-answer", "solution": True, "grade": False, "schema_version": 3}
    }
    return new_code_cell(STUB.format(name=name), id=f"{name}-answer", metadata=about)


def check_cell(name: str) -> NotebookNode:
    """A cell that earns a point; it carries the solution's output, as the course's do."""
    about = {
        "tags": ["nbval-check-output"],
        "nbgrader": {"grade_id": f"{name}-check", "solution": False, "grade": True, "points": 1},
    }
    output = nbformat.v4.new_output("stream", name="stdout", text=f"{name}: ok\n")
    cell = new_code_cell(f'check("{name}", {name})', id=f"{name}-check", metadata=about, outputs=[output])
    cell.execution_count = 1
    return cell


def exercise_notebook(names: tuple[str, ...] = ("double", "negate")) -> NotebookNode:
    """A pristine exercise notebook."""
    cells = [new_markdown_cell("# An exercise", id="title"), new_code_cell(SETUP, id="setup")]
    for name in names:
        cells += [answer_cell(name), check_cell(name)]
    cells.append(
        new_code_cell("import time; time.sleep(1000)  # after the last check: nothing counts", id="end")
    )
    return new_notebook(cells=cells)


def solved(**answers: str) -> NotebookNode:
    """The exercise with some answers in it."""
    notebook = exercise_notebook()
    for cell in notebook.cells:
        name = cell.id.removesuffix("-answer")
        if name in answers and cell.id.endswith("-answer"):
            cell.source = answers[name]
    return notebook


def hand_in(folder: Path, notebook: NotebookNode | str, name: str = "01_doubling.ipynb") -> None:
    """Write a notebook, or any text in its place, as a student's file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = notebook if isinstance(notebook, str) else json.dumps(notebook)
    (folder / name).write_text(text, encoding="utf-8")
