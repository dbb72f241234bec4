"""The functions of a student's solved notebooks, as the parts of a Mask R-CNN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimrcnn.classroom.chapters import all_exercises
from minimrcnn.classroom.diagnosis import NOT_WRITTEN, OK, verdict
from minimrcnn.classroom.exercise import Exercise
from minimrcnn.classroom.harvest import Found, harvest
from minimrcnn.classroom.stopping import TimeUp, time_limit
from minimrcnn.engine.own_parts import unfit
from minimrcnn.errors import UserError
from minimrcnn.lifting import per_image
from minimrcnn.parts import Parts

GIVE_UP = 20  # seconds
NOT_FOUND = "not found in these notebooks"


def my_parts(folder: str | Path = ".") -> Parts:
    """The parts that the notebooks in a folder define, and the package's for the others; says which is which.

    A function is taken if its check says ok and if it is fit to train with (`engine/own_parts.py: unfit`):
    it has a gradient where training needs one, and is not so slow that minutes would become hours.
    Of a notebook only the answer cells and the imports are run, not the rest.

    Args:
        folder: the one with your notebooks; by default the one in which this Python was started, which in
            Jupyter is the notebook's own.

    Raises:
        UserError: there is no such folder.
    """
    exercises = {e.part: e for e in all_exercises().values() if e.part}
    found = harvest(Path(folder), {e.name for e in exercises.values()})
    other = 'If yours are in another folder, name it: my_parts("my_exercises")'
    if not found:
        place = Path(folder).resolve()
        print(f"0 of {len(fields(Parts))} parts are yours: no notebook in {place} answers one.\n{other}")
        return Parts()
    parts, lines = Parts(), []
    for part in (field.name for field in fields(Parts)):
        if part not in exercises:
            lines.append((part, "the package's: the course has no exercise for it"))
            continue
        lifted, said = _choose(exercises[part], found.get(exercises[part].name, []))
        if lifted is not None:
            parts = replace(parts, **{part: lifted})
        lines.append((part, said))
    yours = sum(said.startswith("yours") for _, said in lines)
    print(f"{yours} of {len(lines)} parts are yours:")
    for part, said in lines:
        print(f"  {part:<13}  {said}")
    if any(NOT_FOUND in said for _, said in lines):
        print(f"These are the notebooks in {Path(folder).resolve()}\n{other}")
    return parts


def _choose(exercise: Exercise, candidates: list[Found]) -> tuple[Callable | None, str]:
    """The first candidate that is fit, lifted; otherwise None and why."""
    why = NOT_FOUND
    for found in candidates:
        said = found.problem or verdict(exercise, found.function)
        if said == OK:
            lifted = per_image(exercise.part, _typed(exercise, found.function))
            said = _unfit(exercise.part, lifted)
            if not said:
                return lifted, f"yours, from {found.notebook}"
        if said != NOT_WRITTEN or why == NOT_FOUND:
            why = f"yours, in {found.notebook}: {said}"
    return None, f"the package's ({why})"


def _unfit(part: str, lifted: Callable) -> str:
    """Why a function that is right is not fit to train with, as training itself would judge; "" if it is."""
    try:
        with time_limit(GIVE_UP):  # by the clock on the wall: an endless loop uses no more of the processor
            reason = unfit(part, lifted, torch.device("cpu"))
    except TimeUp:
        return f"right, but no answer within {GIVE_UP} s in the model"
    except UserError as error:
        return f"right, but {error}"
    return reason and f"right, but it {reason}"


def _typed(exercise: Exercise, function: Callable[..., object]) -> Callable[..., object]:
    """The function with its lists and float64 made what the model works with."""
    wanted = exercise.reference(*exercise.cases()[0])

    def part(*arguments: object) -> object:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        return _like(function(*arguments), wanted, device)

    return part


def _like(answer: object, wanted: object, device: torch.device) -> object:
    if isinstance(wanted, tuple):
        return tuple(_like(a, w, device) for a, w in zip(answer, wanted, strict=True))
    if not isinstance(answer, Tensor):
        if isinstance(answer, list | tuple) and any(isinstance(item, Tensor) for item in answer):
            answer = torch.stack(tuple(answer))
        else:
            answer = torch.from_numpy(np.array(answer))
    if answer.numel() == 0 and answer.dim() == 1:  # an empty list
        answer = answer.reshape(0, *wanted.shape[1:])
    return answer.to(device, wanted.dtype)
