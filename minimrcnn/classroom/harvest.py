"""Functions out of notebooks: the answer cells and the imports are run, in a namespace of their own."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minimrcnn.classroom.stopping import TimeUp, time_limit
from minimrcnn.errors import UserError

SECONDS = 60.0  # for the imports and definitions of one notebook


@dataclass(frozen=True)
class Found:
    """A function of a student's, or why there is none."""

    notebook: str  # the file's name
    function: Callable[..., object] | None
    problem: str = ""


def harvest(folder: Path, names: set[str]) -> dict[str, list[Found]]:
    """The functions of these names in the answer cells of a folder's notebooks, in the order of the files.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name the one with your notebooks.")
    found: dict[str, list[Found]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            answers = {name: one for name, one in _run(path.name, cells).items() if name in names}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"{path.name} cannot be read as a notebook: {error}")
            continue
        for name, one in answers.items():
            found.setdefault(name, []).append(one)
    return found


def _run(notebook: str, cells: list[dict]) -> dict[str, Found]:
    """What the answer cells of a notebook define."""
    scope: dict[str, object] = {"__name__": "__main__"}
    found: dict[str, Found] = {}
    try:
        with time_limit(SECONDS):
            for number, cell in enumerate(cells):
                if cell.get("cell_type") != "code":
                    continue
                name = _answer_to(cell)
                problem = _execute(_plain(cell), f"{notebook}, cell {number + 1}", scope, answer=bool(name))
                if name and (problem or callable(scope.get(name))):
                    found[name] = Found(notebook, scope.get(name), problem)
    except TimeUp:
        print(f"{notebook}: its imports and definitions take more than {SECONDS:g} seconds; the rest is left")
    return found


def _answer_to(cell: dict) -> str:
    """The exercise that a cell answers; "" for other cells."""
    about = cell.get("metadata", {}).get("nbgrader", {})
    return str(about.get("grade_id", "")) if about.get("solution") else ""


def _plain(cell: dict) -> str:
    """A cell's Python, IPython's own lines left blank."""
    source = cell.get("source", "")
    source = source if isinstance(source, str) else "".join(source)
    return re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)


def _execute(source: str, name: str, scope: dict[str, object], *, answer: bool) -> str:
    """Run a cell's imports; of an answer cell its definitions and assignments too. Returns what is wrong."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        return f"is not Python: {error}"
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)  # so that a check can quote the line
    wanted = (ast.Import, ast.ImportFrom)
    if answer:
        wanted += (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    problem = ""
    for statement in body:
        if not isinstance(statement, wanted):
            continue
        code = compile(ast.Module([statement], []), name, "exec")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, scope)
        except (Exception, SystemExit) as error:  # a leftover of trying things out; the check will tell
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                problem = f"raises {type(error).__name__}: {error}"
    return problem
