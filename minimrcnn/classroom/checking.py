"""check(name, function): one line that says whether a student's function is right, and if not, why."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches

from minimrcnn.classroom.chapters import all_exercises
from minimrcnn.classroom.diagnosis import OK, verdict


def check(name: str, function: Callable[..., object]) -> None:
    """Print one line: `iou: ok`, `iou: not written yet`, or `iou: ` and what is wrong.

    The function is called with random inputs and compared with the package's own. Loops or tensor code,
    float32 or float64, lists or tensors: any right answer is taken. Nothing that it does stops the notebook:
    an exception is reported with its line, an endless loop is stopped after some seconds (on Windows, which
    has no SIGALRM, it is not: interrupt the kernel), its prints are not shown.

    Args:
        name: of the exercise.
        function: the student's.

    Raises:
        AssertionError: the check failed, and nbgrader's autograder is running (it sets NBGRADER_EXECUTION).
    """
    exercise = all_exercises().get(name)
    line = f"{name}: {verdict(exercise, function)}" if exercise else _unknown(name)
    print(line)
    if line != f"{name}: {OK}" and os.environ.get("NBGRADER_EXECUTION"):
        raise AssertionError(line)


def _unknown(name: str) -> str:
    near = get_close_matches(str(name), all_exercises(), n=1)
    return f"{name}: there is no exercise of this name" + (f"; did you mean {near[0]}?" if near else "")
