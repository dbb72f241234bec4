"""All exercises: each file chNN_*.py here ends in EXERCISES; their order is that of the notebooks."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from minimrcnn.classroom.exercise import Exercise


@cache
def all_exercises() -> dict[str, Exercise]:
    """Every exercise by its name, in the order of the course.

    Raises:
        ValueError: two exercises have one name.
    """
    found: dict[str, Exercise] = {}
    names = (info.name for info in pkgutil.iter_modules(__path__))
    for module in sorted(name for name in names if name.startswith("ch")):
        for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES:
            if exercise.name in found:
                raise ValueError(f"{module}: there is an exercise {exercise.name!r} already")
            found[exercise.name] = exercise
    return found


def of_chapter(chapter: int) -> list[Exercise]:
    """The exercises of one chapter, in the order of its notebook."""
    return [exercise for exercise in all_exercises().values() if exercise.chapter == chapter]
