"""What students hand in: their answers, taken out of whatever state the notebook is in.

Only the sources of the answer cells are read. They are put into a pristine copy of the exercise, so what
else a student changed, stored or deleted does not count.
"""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minimrcnn.errors import UserError

LARGEST = 64 << 20  # bytes: a notebook with every picture of the course in it is smaller
NOT_HANDED_IN = "not handed in"
MESSAGE = 300  # characters of a student's making that a report quotes


@dataclass(frozen=True)
class Assignment:
    """A pristine exercise notebook."""

    name: str  # "03_anchors_and_matching"
    notebook: NotebookNode
    answers: dict[str, str]  # cell id -> nbgrader's grade_id, which outlives editors that renew ids
    checks: dict[str, str]  # cell id -> the exercise's name
    usual: dict[str, set[str]]  # cell id -> names that the course's own solution uses; {} where it is absent

    def answers_to(self, check: str) -> list[str]:
        """The ids of the answer cells between the check before this one and this one."""
        found: list[str] = []
        for cell in self.notebook.cells:
            if cell.id == check:
                break
            found = [] if cell.id in self.checks else found + [cell.id] * (cell.id in self.answers)
        return found


def is_answer(cell: NotebookNode) -> bool:
    """Whether the student writes this cell."""
    return cell.cell_type == "code" and bool(cell.metadata.get("nbgrader", {}).get("solution"))


def is_check(cell: NotebookNode) -> bool:
    """Whether this cell earns anything."""
    return cell.cell_type == "code" and bool(cell.metadata.get("nbgrader", {}).get("grade"))


def read_assignments(exercises: Path, solutions: Path | None = None) -> list[Assignment]:
    """All exercise notebooks of a folder that have checks, by name.

    solutions: the folder of the solutions, if it is there: it tells which names an answer uses by right.
    Raises UserError for a folder without such notebooks, and for one that is damaged.
    """
    found = []
    for path in sorted(exercises.glob("*.ipynb")):
        try:
            notebook = nbformat.read(path, as_version=4)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is damaged: {error}. Build it anew: python -m minimrcnn exercises build"
            ) from error
        answers = {
            cell.id: cell.metadata.nbgrader.get("grade_id", cell.id)
            for cell in notebook.cells
            if is_answer(cell)
        }
        checks = {cell.id: _checked(cell, path) for cell in notebook.cells if is_check(cell)}
        if checks:
            usual = _names_by_cell(solutions / path.name) if solutions else {}
            found.append(Assignment(path.stem, notebook, answers, checks, usual))
    if not found:
        raise UserError(
            f"{exercises} holds no exercise notebook with checks. Name the folder: --exercises DIR"
        )
    return found


def _checked(cell: NotebookNode, path: Path) -> str:
    """The name in a cell's check("name", ...)."""
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check" and node.args:
            return ast.literal_eval(node.args[0])
    raise UserError(f'{path}: the graded cell {cell.id} calls no check("name", ...)')


def files_for(student: Path, name: str) -> list[Path]:
    """A student's files for an assignment, in any folder of theirs; a "03 (1).ipynb" where none has its name.

    More than one, or a link, is not what was asked for, but was handed in.
    """
    files = [
        path
        for path in sorted(student.rglob("*.ipynb"))
        if not any(part.startswith(".") for part in path.relative_to(student).parts)  # .ipynb_checkpoints
    ]
    exact = [path for path in files if path.stem == name]
    number = name.partition("_")[0]
    return exact or [path for path in files if re.match(rf"{re.escape(number)}(?!\d)", path.name)]


def find_notebook(student: Path, name: str) -> Path:
    """A student's one file for an assignment.

    Raises UserError where there is none, or more than one.
    """
    found = files_for(student, name)
    if not found:
        raise UserError(NOT_HANDED_IN)
    if len(found) > 1:
        names = ", ".join(path.relative_to(student).as_posix() for path in found)
        raise UserError(f"handed in more than once, so none is graded: {names}")
    if found[0].is_symlink() or not found[0].is_file():
        raise UserError("not a file of its own but a link")
    return found[0]


def read_answers(path: Path) -> dict[str, str]:
    """The sources of all code cells by cell id, and by nbgrader's grade_id where there is one.

    Read by hand, not by nbformat: a notebook that is invalid somewhere else still holds its answers.
    Raises UserError for a file in which there are no cells to be read.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"not read: larger than {LARGEST >> 20} MB. Clear its outputs")
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return dict(_sources(cells))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError("cannot be read: its bytes are not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"cannot be read: broken JSON (line {error.lineno}: {error.msg})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"cannot be read: no notebook of format 4 ({type(error).__name__}: {error}"
        raise UserError(f"{told[:MESSAGE]})") from error


def _sources(cells: list[dict]) -> Iterator[tuple[str, str]]:
    # Backwards, so that of two cells with the same id the first one stays.
    for cell in reversed(cells):
        source = cell.get("source", "")
        source = "".join(source) if isinstance(source, list) else str(source)
        identity = cell.get("metadata", {}).get("nbgrader", {})
        for key in (identity.get("grade_id"), cell.get("id")):
            if cell.get("cell_type") == "code" and isinstance(key, str):
                yield key, source


def fill_in(assignment: Assignment, sources: dict[str, str]) -> tuple[NotebookNode, list[str]]:
    """The pristine notebook with a student's answers in it, and remarks for the instructor."""
    notebook, remarks = copy.deepcopy(assignment.notebook), []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.id not in assignment.answers:
            continue
        written = sources.get(cell.id, sources.get(assignment.answers[cell.id]))
        if written is None:
            remarks.append(f"the answer cell {cell.id} is not in the file")
            continue
        used = WATCHED & (_names(written) - _names(cell.source) - assignment.usual.get(cell.id, set()))
        if used:
            remarks.append(f"the answer {cell.id} uses {', '.join(sorted(used))}: read it")
        cell.source = written
    return notebook, remarks


# ---------------------------------------------------------------- what deserves a look

# Names with which an answer can borrow the reference, or reach what judges it.
WATCHED = {
    *("minimrcnn", "torchvision", "pycocotools", "builtins", "__builtins__", "sys", "os", "gc", "inspect"),
    *("ctypes", "importlib", "__import__", "subprocess", "signal", "threading", "atexit", "exec", "eval"),
    *("globals", "get_ipython", "IPython"),
}


def _names(source: str) -> set[str]:
    """Every name that is read or imported in a cell; of one that does not parse, every word."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set(re.findall(r"\w+", source))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def _names_by_cell(path: Path) -> dict[str, set[str]]:
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError):
        return {}
    return {cell.id: _names(cell.source) for cell in notebook.cells if is_answer(cell)}
