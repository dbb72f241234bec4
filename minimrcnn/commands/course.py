"""exercises start, build and audit; grade."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from minimrcnn.classroom.stopping import ANSWER_SECONDS
from minimrcnn.commands.arguments import command, number
from minimrcnn.errors import UserError


def add_exercises(commands: argparse._SubParsersAction) -> None:
    """`exercises` and its three commands."""
    exercises = commands.add_parser("exercises", help="Start, build or audit the exercises of the course.")
    tasks = exercises.add_subparsers(title="commands", metavar="COMMAND", required=True)
    start = command(
        tasks,
        "start",
        run_exercises_start,
        "Copy the exercise notebooks to a folder to work in, without outputs.\n\n"
        "Call it again with a newer course: a notebook that you changed is never overwritten, the newer\n"
        "version is put beside it.",
        "  python -m minimrcnn exercises start my_exercises",
    )
    start.add_argument("folder", type=Path, metavar="FOLDER", help="where you want to work")
    build = command(
        tasks,
        "build",
        run_exercises_build,
        "Make exercises/*.ipynb from solutions/*.ipynb.\n\n"
        "The solutions get fixed cell ids and nbgrader's metadata. The same solutions give the same bytes.",
        "  python -m minimrcnn exercises build --check",
    )
    build.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if anything would change"
    )
    audit = command(
        tasks,
        "audit",
        run_exercises_audit,
        "Test the checks: right answers must be accepted, mistakes rejected with their own message.\n\n"
        "Prints the table of all exercises. Exit status 1 below 100 %.",
        "  python -m minimrcnn exercises audit --chapter 5",
    )
    audit.add_argument("--chapter", type=number(int, 1), metavar="N", help="this one (default: all)")


def add_grade(commands: argparse._SubParsersAction) -> None:
    """`grade`."""
    grade = command(
        commands,
        "grade",
        run_grade,
        "Grade the exercises of a class.\n\n"
        "SUBMISSIONS holds a folder for each student, and these the notebooks, in any sub-folder. Only the\n"
        "answers are taken from them, and put into pristine copies. Each copy runs in a process of its own,\n"
        "with limits of time and memory, and without the network where the system allows to cut it.\n"
        "DIR gets grades.csv (student x exercise: 1, 0, or nothing where not handed in) and grades.html\n"
        "(every message, and what the result does not prove: read that part), written anew after each\n"
        "student. --seconds is for a whole notebook; one answer is stopped by its check after\n"
        f"{ANSWER_SECONDS:g} seconds (on Windows not).",
        "  python -m minimrcnn grade submitted --out grades --only 03 --jobs 2",
    )
    grade.add_argument("submissions", type=Path, metavar="SUBMISSIONS", help="a folder of student folders")
    grade.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    grade.add_argument(
        "--exercises", type=Path, metavar="DIR", help="the pristine exercises (default: the course's)"
    )
    grade.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NN",
        help="these notebooks (default: those that a student handed in)",
    )
    grade.add_argument(
        "--jobs", type=number(int, 1), default=1, metavar="N", help="notebooks at the same time (default: 1)"
    )
    grade.add_argument(
        "--seconds", type=number(float, 1), default=300, metavar="S", help="for a notebook (default: 300)"
    )
    grade.add_argument(
        "--memory", type=number(int, 256), default=4096, metavar="MIB", help="for a notebook (default: 4096)"
    )


def run_exercises_start(args: argparse.Namespace) -> int:
    """Copy the exercises, and say what was done with each."""
    from minimrcnn.classroom.starting import start

    print("\n".join(start(args.folder)))
    print(f"\nNext: python -m jupyterlab {args.folder}")
    return 0


def run_exercises_build(args: argparse.Namespace) -> int:
    """Build the exercises; with --check 1 if anything would change."""
    _require_jupyter()
    from minimrcnn.classroom.building import build

    differing = build(check=args.check)
    for path in differing:
        print(f"{path}: {'differs' if args.check else 'written'}")
    if not differing:
        print("the exercises are what the solutions make of them")
    elif args.check:
        print("Build them anew: python -m minimrcnn exercises build")
    return 1 if args.check and differing else 0


def run_exercises_audit(args: argparse.Namespace) -> int:
    """Audit all exercises; 1 if a check does not say what it should."""
    from minimrcnn.classroom.auditing import audit, table
    from minimrcnn.classroom.chapters import all_exercises

    exercises = list(all_exercises().values())
    chosen = [e for e in exercises if args.chapter in (None, e.chapter)]
    if not chosen:
        chapters = ", ".join(map(str, sorted({e.chapter for e in exercises})))
        raise UserError(f"--chapter {args.chapter}: it has no exercises. There are: {chapters}.")
    audits = [audit(exercise) for exercise in chosen]
    print(table(audits))
    problems = [problem for one in audits for problem in one.problems]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


def run_grade(args: argparse.Namespace) -> int:
    """Grade a class."""
    _require_jupyter()
    from minimrcnn.classroom.fence import Limits, said
    from minimrcnn.classroom.grading import OK, grade

    limits = Limits(args.seconds, args.memory << 20)
    only = tuple(args.only)
    grades = grade(
        args.submissions, args.out, exercises=args.exercises, only=only, limits=limits, jobs=args.jobs
    )
    messages = [message for one in grades if one.handed_in for message in one.messages.values()]
    right = sum(message == OK for message in messages)
    print(
        f"{len({one.student for one in grades})} students, {len(messages)} answers handed in, "
        f"{right} right. {said()}\n"
        f"Next, open\n  {args.out / 'grades.html'}  every message, and what the result does not prove\n"
        f"  {args.out / 'grades.csv'}   the table"
    )
    return 0


def _require_jupyter() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")):
        raise UserError(
            "this works with notebooks, and Jupyter is not installed: pip install -r requirements.txt"
        )
