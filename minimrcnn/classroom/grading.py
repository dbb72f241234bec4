"""Grade a class: python -m minimrcnn grade SUBMISSIONS --out grades/

SUBMISSIONS holds a folder for each student, and these the notebooks, in any sub-folder. Of a notebook only
the answers are taken, by cell id, and put into a pristine copy of the exercise: edited checks, stored
outputs and deleted cells earn nothing. Each copy runs in a process of its own, behind a fence (`fence.py`).

What this does not protect against. An answer runs in the same process as the check that judges it, as the
user who grades, on the machine that grades. A student who sets out to deceive can: patch the package from
within an answer, read the reference and give back its results (answers that use suspicious names are marked
"read it"), read whatever the grading user may read, and, where the fence could not stop it, write: other
students' work and these programs are files too. It does not tell who wrote an answer. It does not limit the
disk. Grade strangers' work as a user who owns nothing, in a container or a virtual machine that you throw
away, and read what is marked.
"""

from __future__ import annotations

import json
import shutil
import site
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from minimrcnn.classroom.fence import Limits, kind, run_fenced, said
from minimrcnn.classroom.kernel import ROOT, kernel_environment
from minimrcnn.classroom.submissions import (
    MESSAGE,
    Assignment,
    fill_in,
    find_notebook,
    read_answers,
    read_assignments,
)
from minimrcnn.errors import UserError

OK = "ok"


@dataclass(frozen=True)
class Grades:
    """What one student's work on one notebook came to.

    Attributes:
        messages: by exercise: "ok", or what is wrong.
        remarks: what the instructor should look at.
    """

    student: str
    notebook: str
    messages: dict[str, str]
    remarks: list[str]


def grade(
    submissions: Path,
    out: Path,
    *,
    exercises: Path | None = None,
    only: tuple[str, ...] = (),
    limits: Limits,
    jobs: int = 1,
) -> list[Grades]:
    """Grade all students; writes out/grades.csv and out/grades.html, anew after each student.

    Args:
        exercises: folder of the pristine exercises; None: those beside the package.
        only: numbers or names of notebooks, such as "03"; () for all.
        limits: for each notebook.
        jobs: notebooks at the same time.

    Raises:
        UserError: there are no students, no exercises, or out cannot be written.
    """
    from minimrcnn.classroom.grading_report import write_report

    assignments = _chosen(_assignments(exercises), only)
    students = _students(submissions)
    said()  # finds out what the system allows, once, before the threads start
    done: list[Grades] = []
    stop = threading.Event()
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(students) * len(assignments), unit="notebook", disable=None) as bar,
    ):
        waiting = [
            [pool.submit(grade_notebook, student, one, limits, stop) for one in assignments]
            for student in students
        ]
        try:
            for futures in waiting:
                for future in futures:
                    done.append(future.result())
                    bar.set_postfix_str(f"{done[-1].student} {done[-1].notebook}", refresh=False)
                    bar.update()
                write_report(out, assignments, done, limits, of=len(students))
        finally:
            stop.set()  # after Ctrl-C: nothing is left running
            pool.shutdown(cancel_futures=True)
    return done


def grade_notebook(student: Path, assignment: Assignment, limits: Limits, stop: threading.Event) -> Grades:
    """Grade one notebook of one student, whatever state it is in."""
    names = assignment.checks.values()
    try:
        sources = read_answers(find_notebook(student, assignment.name))
    except UserError as error:
        return Grades(student.name, assignment.name, dict.fromkeys(names, str(error)), [])
    notebook, remarks = fill_in(assignment, sources)
    messages, more = _run(notebook, assignment, limits, stop)
    return Grades(student.name, assignment.name, messages, remarks + more)


def _run(
    notebook: NotebookNode, assignment: Assignment, limits: Limits, stop: threading.Event
) -> tuple[dict[str, str], list[str]]:
    """Run a filled-in notebook in a folder of its own; the message of each exercise, and remarks."""
    printed: dict[str, str] = {}  # cell id -> what the check printed
    remarks: list[str] = []
    state = {"at": ""}

    def hear(line: str) -> None:
        facts = json.loads(line)
        if "check" in facts:
            printed[facts["check"]] = facts["printed"]
        elif "answer" in facts:
            remarks.append(f"the cell {facts['answer']} raises {facts['raised']}"[:MESSAGE])
        else:
            state.update(facts)

    with tempfile.TemporaryDirectory(prefix="minimrcnn-grade-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"{assignment.name}.ipynb"
        nbformat.write(notebook, path)
        command = [sys.executable, "-m", "minimrcnn.classroom.grading_run"]
        command += [str(path), str(limits.memory), kind()]
        environment = _environment(Path(folder))
        met = run_fenced(command, limits, folder=Path(folder), environment=environment, hear=hear, stop=stop)
    where = f" in cell {state['at']}" if state["at"] else ""
    if met:
        why = f"not reached: the notebook met {met}{where}"
    elif "failed" in state:
        why = f"not run: {state['failed']}"
    else:
        why = f"not reached: the kernel ended{where}"
    checks = assignment.checks.items()
    return {name: _message(name, printed.get(cell), why) for cell, name in checks}, remarks


def _environment(folder: Path) -> dict[str, str]:
    """For the kernel: a home of its own, where Jupyter and matplotlib may write; nbgrader's switch is off."""
    passed = {
        key: value
        for key, value in kernel_environment().items()
        if not key.startswith(("NBGRADER", "JUPYTER", "IPYTHON", "XDG_", "MPLCONFIGDIR"))
    }
    fonts = folder / ".cache" / "matplotlib"
    fonts.mkdir(parents=True)
    for known in Path.home().glob(".cache/matplotlib/fontlist-*.json"):  # or each kernel lists all fonts anew
        shutil.copy(known, fonts)
    places = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(folder))
    # Packages that were installed with --user are found through the home directory.
    return passed | places | {"PYTHONUSERBASE": site.getuserbase()}


def _message(name: str, printed: str | None, why_not: str) -> str:
    """ "ok" if the check printed its one line for that and nothing else, or else what is wrong."""
    if printed is None:
        return why_not[:MESSAGE]
    line = printed.removesuffix("\n")
    said = line.removeprefix(f"{name}: ")
    if said == OK and line != said:
        return OK
    return (said if said not in ("", OK) else "the check did not print its line")[:MESSAGE]


# ---------------------------------------------------------------- what is graded


def _assignments(exercises: Path | None) -> list[Assignment]:
    folder = exercises or ROOT / "exercises"
    solutions = folder.with_name("solutions")
    return read_assignments(folder, solutions if solutions.is_dir() else None)


def _chosen(assignments: list[Assignment], only: tuple[str, ...]) -> list[Assignment]:
    chosen = []
    for wanted in only:
        fitting = [one for one in assignments if wanted in (one.name, one.name.partition("_")[0])]
        if not fitting:
            names = ", ".join(one.name for one in assignments)
            raise UserError(f"there is no exercise notebook {wanted}. There are: {names}")
        chosen += fitting
    return chosen if only else assignments


def _students(submissions: Path) -> list[Path]:
    if not submissions.is_dir():
        raise UserError(f"{submissions} is no folder. Give one that holds a folder for each student.")
    students = sorted(
        path for path in submissions.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not students:
        raise UserError(f"{submissions} holds no folders: there should be one for each student.")
    return students
