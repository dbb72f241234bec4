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
import re
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
    NOT_HANDED_IN,
    Assignment,
    files_for,
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
        trouble: why the notebook was not graded, or not to its end; "" where it was.
    """

    student: str
    notebook: str
    messages: dict[str, str]
    remarks: list[str]
    trouble: str = ""

    @property
    def handed_in(self) -> bool:
        """Whether there is a file, in whatever state."""
        return self.trouble != NOT_HANDED_IN


def grade(
    submissions: Path,
    out: Path,
    *,
    exercises: Path | None = None,
    only: tuple[str, ...] = (),
    limits: Limits,
    jobs: int = 1,
) -> list[Grades]:
    """Grade all students; writes out/grades.csv and out/grades.html, and prints a line, after each student.

    Args:
        exercises: folder of the pristine exercises; None: those beside the package.
        only: numbers or names of notebooks, such as "03"; () for those that a student at least handed in.
        limits: for each notebook.
        jobs: notebooks at the same time.

    Raises:
        UserError: there are no students, no exercises, nothing was handed in, or out cannot be written.
    """
    from minimrcnn.classroom.grading_report import write_report

    assignments, students = _assignments(exercises), _students(submissions)
    assignments = _named(assignments, only) if only else _handed_in(assignments, students, submissions)
    tell(f"grading {', '.join(one.name for one in assignments)}; students: {len(students)}")
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
                tell(summary(done[-len(assignments) :]))
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
        return Grades(student.name, assignment.name, dict.fromkeys(names, str(error)), [], str(error))
    notebook, remarks = fill_in(assignment, sources)
    messages, more, trouble = _run(notebook, assignment, limits, stop)
    return Grades(student.name, assignment.name, messages, remarks + more, trouble)


def summary(grades: list[Grades]) -> str:
    """One student's line: `cyd: 0 of 6, 03_anchors.ipynb cannot be read: broken JSON (line 7: ...)`."""
    messages = [message for one in grades for message in one.messages.values()]
    right = f"{grades[0].student}: {sum(message == OK for message in messages)} of {len(messages)}"
    return ", ".join([right, *(f"{one.notebook}.ipynb {one.trouble}" for one in grades if one.trouble)])


def tell(line: str) -> None:
    """Print a line at once, above the bar if there is one; a name may hold what cannot be printed."""
    shown = "".join(character if character.isprintable() else "?" for character in line)
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(shown.encode(encoding, "replace").decode(encoding), file=sys.stdout)
    sys.stdout.flush()


def _run(
    notebook: NotebookNode, assignment: Assignment, limits: Limits, stop: threading.Event
) -> tuple[dict[str, str], list[str], str]:
    """Run a filled-in notebook in a folder of its own.

    Returns the message of each exercise, remarks, and why the run did not reach its end ("" if it did).
    """
    printed: dict[str, str] = {}  # cell id -> what the check printed
    raised: dict[str, str] = {}  # id of an answer cell -> the exception that ended it
    state = {"at": ""}

    def hear(line: str) -> None:
        facts = json.loads(line)
        if "check" in facts:
            printed[facts["check"]] = facts["printed"]
        elif "answer" in facts:
            raised[facts["answer"]] = _without_file(facts["raised"])
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
        why, trouble = f"not reached: the notebook met {met}{where}", f"was stopped: it met {met}{where}"
    elif "failed" in state:
        why = trouble = f"not run: {state['failed']}"
    else:
        why, trouble = f"not reached: the kernel ended{where}", f"was stopped: its kernel ended{where}"
    messages = {name: _message(name, printed.get(cell), why) for cell, name in assignment.checks.items()}
    for cell, name in assignment.checks.items():
        wrong = messages[name] != OK  # of a right answer it stays a remark
        above = [raised.pop(answer) for answer in assignment.answers_to(cell) if wrong and answer in raised]
        if above:
            messages[name] = f"the cell raises {'; '.join(above)}; so the check: {messages[name]}"[:MESSAGE]
    remarks = [f"the cell {cell} raises {error}"[:MESSAGE] for cell, error in raised.items()]
    return messages, remarks, trouble[:MESSAGE] if assignment.checks.keys() - printed.keys() else ""


def _without_file(error: str) -> str:
    """`SyntaxError: expected ':' (123.py, line 1)` without the name that IPython gives a cell."""
    return re.sub(r"\([^()\s]+, (line \d+)\)$", r"(\1)", error)


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


def _named(assignments: list[Assignment], only: tuple[str, ...]) -> list[Assignment]:
    chosen = []
    for wanted in only:
        fitting = [one for one in assignments if wanted in (one.name, one.name.partition("_")[0])]
        if not fitting:
            names = ", ".join(one.name for one in assignments)
            raise UserError(f"there is no exercise notebook {wanted}. There are: {names}")
        chosen += fitting
    return chosen


def _handed_in(assignments: list[Assignment], students: list[Path], submissions: Path) -> list[Assignment]:
    """What a student at least handed in: a class hands in a chapter at a time, not the course."""
    found = [one for one in assignments if any(files_for(student, one.name) for student in students)]
    if not found:
        raise UserError(
            f"nothing was handed in: the folders of {submissions} hold no notebook whose name is that of an "
            f"exercise, such as {students[0].name}/{assignments[0].name}.ipynb."
        )
    return found


def _students(submissions: Path) -> list[Path]:
    if not submissions.is_dir():
        raise UserError(f"{submissions} is no folder. Give one that holds a folder for each student.")
    students = sorted(
        path for path in submissions.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not students:
        raise UserError(f"{submissions} holds no folders: there should be one for each student.")
    return students
