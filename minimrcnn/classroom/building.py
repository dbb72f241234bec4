"""The exercise notebooks, made from the solutions: python -m minimrcnn exercises build

A solution notebook is written by hand. Of its code cells two kinds are special, and known by their text:
an answer cell holds one `### BEGIN SOLUTION` ... `### END SOLUTION` and defines one exercise of the chapter;
a check cell is `check("name", name)` and nothing else. The build gives both nbgrader's metadata, gives all
cells fixed ids, and stores that in the solution too. So `nbgrader generate_assignment` makes of the solutions
what is made of them here, and `nbgrader autograde` takes either.

A check cell of an exercise carries the solution's output, `name: ok`: `pytest --nbval-lax` fails there, and
only there, until the exercise is solved.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import re
import warnings
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minimrcnn.classroom.chapters import of_chapter
from minimrcnn.classroom.execute import tidy, write_notebook
from minimrcnn.classroom.exercise import Exercise
from minimrcnn.classroom.kernel import ROOT
from minimrcnn.errors import UserError

SOLUTIONS, EXERCISES = ROOT / "solutions", ROOT / "exercises"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
INSTEAD = ("# YOUR CODE HERE", "raise NotImplementedError()")  # nbgrader's, too


def build(solutions: Path = SOLUTIONS, exercises: Path = EXERCISES, *, check: bool = False) -> list[Path]:
    """Write every exercise notebook, and ids and metadata into the solutions.

    Args:
        check: write nothing.

    Returns:
        The files that were written, or with `check` would have been.

    Raises:
        UserError: a solution notebook is not as it should be; it and the cell are named.
    """
    found = sorted(solutions.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise UserError(f"{solutions} holds no solution notebook (NN_*.ipynb).")
    left = {path.name for path in exercises.glob("*.ipynb")} - {path.name for path in found}
    if left:
        raise UserError(f"{exercises} holds {', '.join(sorted(left))}, without a solution: take it away.")
    differing = []
    for path in found:
        solution = stamped(_read(path), path, of_chapter(int(path.name[:2])))
        for place, notebook in ((path, solution), (exercises / path.name, exercise_of(solution))):
            if not place.exists() or place.read_text(encoding="utf-8") != nbformat.writes(notebook) + "\n":
                differing.append(place)
                if not check:
                    exercises.mkdir(exist_ok=True)
                    write_notebook(place, notebook)
    return differing


def _read(path: Path) -> NotebookNode:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ids that are missing or there twice: they are given anew
            return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a notebook: {error}") from error


# ---------------------------------------------------------------- the solution: ids and metadata


def stamped(notebook: NotebookNode, path: Path, exercises: list[Exercise]) -> NotebookNode:
    """A solution notebook with its ids, nbgrader's metadata and the tags of the checks.

    Raises:
        UserError: an exercise of the chapter is missing, given twice, or not as its chapter file says.
    """
    notebook = copy.deepcopy(notebook)
    notebook.nbformat_minor = 5  # the first with cell ids
    tidy(notebook)
    todo = [e.name for e in exercises for _ in ("answer", "check")]
    known = {e.name: e for e in exercises}
    heading, used = "", set()
    for number, cell in enumerate(notebook.cells):
        where = f"{path}, cell {number + 1}"
        cell.metadata.pop("nbgrader", None)
        name = answered(cell, known, where) or checked(cell)
        if name and (not todo or todo.pop(0) != name):
            raise UserError(
                f"{where}: {name} is not what comes next. Each exercise of the chapter is answered, then "
                f"checked, once, in this order: {', '.join(known)}."
            )
        if cell.cell_type == "markdown":
            heading += cell.source + "\n"
        elif name and BEGIN in cell.source:
            _compare(known[name], cell, heading, where)
            heading = ""
            cell.metadata.nbgrader = _nbgrader(name, solution=True)
        elif name:
            _expect_ok(name, cell, path, where)
            points = known[name].difficulty
            cell.metadata.nbgrader = _nbgrader(f"{name}-check", grade=True, locked=True, points=points)
            cell.metadata.tags = ["nbval-check-output"]
        cell.id = _cell_id(path, cell, used)
    if todo:
        raise UserError(f"{path}: the exercise {todo[0]} is not answered and checked.")
    nbformat.validate(notebook)
    return notebook


def answered(cell: NotebookNode, known: dict[str, Exercise], where: str) -> str:
    """The name of the exercise that an answer cell defines; "" for other cells."""
    if cell.cell_type != "code" or BEGIN not in cell.source:
        return ""
    try:
        defined = [n.name for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)]
    except SyntaxError as error:
        raise UserError(f"{where} is not Python: {error}") from error
    names = [name for name in defined if name in known]
    if len(names) != 1:
        raise UserError(f"{where} must define one exercise of this chapter: {', '.join(known)}.")
    return names[0]


def checked(cell: NotebookNode) -> str:
    """The name in a check cell; "" for other cells."""
    if cell.cell_type != "code":
        return ""
    found = re.fullmatch(r'check\("(\w+)", (\w+)\)', cell.source.strip())
    return found[1] if found and found[1] == found[2] else ""


def _compare(exercise: Exercise, cell: NotebookNode, heading: str, where: str) -> None:
    """The notebook's text of an exercise is the chapter file's."""
    if cleared(cell.source, where) != exercise.blank:
        raise UserError(
            f"{where}: without its solution the cell is\n\n{cleared(cell.source, where)}\n\n"
            f"but the stub of {exercise.name} in minimrcnn/classroom/chapters is\n\n{exercise.blank}\n"
        )
    if exercise.heading not in heading:
        raise UserError(f"{where}: above {exercise.name} this line must stand:\n\n{exercise.heading}\n")


def _expect_ok(name: str, cell: NotebookNode, path: Path, where: str) -> None:
    said = "".join(output.get("text", "") for output in cell.outputs)
    if said != f"{name}: ok\n" or len(cell.outputs) != 1 or cell.execution_count is None:
        raise UserError(
            f"{where}: the stored output of the check is {said!r}, not '{name}: ok'. Run the notebook and "
            f"store it: python -m minimrcnn.classroom.execute {path}"
        )


def _nbgrader(grade_id: str, **fields: object) -> dict[str, object]:
    """Metadata of nbgrader's schema 3."""
    cell = {"grade": False, "locked": False, "solution": False, "task": False}
    return cell | {"grade_id": grade_id, "schema_version": 3} | fields


def _cell_id(path: Path, cell: NotebookNode, used: set[str]) -> str:
    """An exercise's name for its cells; for others a hash of their text, the same at each build."""
    fixed = cell.metadata.get("nbgrader", {}).get("grade_id")
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
    first = fixed or f"{path.name[:2]}-{digest}"
    free = (name for name in (first, *(f"{first}-{n}" for n in range(2, 1000))) if name not in used)
    chosen = next(free)
    used.add(chosen)
    return chosen


# ---------------------------------------------------------------- the exercise


def exercise_of(solution: NotebookNode) -> NotebookNode:
    """The exercise notebook of a stamped solution."""
    notebook = copy.deepcopy(solution)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        role = cell.metadata.get("nbgrader", {})
        if role.get("grade"):
            cell.metadata |= {"deletable": False, "editable": False}
            continue  # its output stays: it is what nbval compares with
        cell.outputs, cell.execution_count = [], None
        if role.get("solution"):
            cell.metadata["deletable"] = False
            cell.source = cleared(cell.source, cell.id)
    return notebook


def cleared(source: str, where: str) -> str:
    """A cell's text with its solution taken out, as nbgrader takes it out.

    Raises:
        UserError: a BEGIN without an END, or the other way round.
    """
    lines, inside = [], False
    for line in source.splitlines():
        if line.strip() == BEGIN and not inside:
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + text for text in INSTEAD]
        elif line.strip() == END and inside:
            inside = False
        elif line.strip() in (BEGIN, END):
            raise UserError(f"{where}: {line.strip()} out of place.")
        elif not inside:
            lines.append(line)
    if inside:
        raise UserError(f"{where}: {BEGIN} without {END}.")
    return "\n".join(lines)
