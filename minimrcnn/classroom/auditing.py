"""The checks checked: right answers must pass, and each planted mistake must be told in its own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimrcnn.classroom.diagnosis import (
    NOT_WRITTEN,
    OK,
    describe,
    parameter_names,
    verdict,
    without_gradient,
)
from minimrcnn.classroom.exercise import Exercise

LEAST_MISTAKES, LEAST_OF_A_PART = 2, 4


@dataclass
class Audit:
    """What one exercise's check said to every answer that is known."""

    exercise: Exercise
    right: int = 0  # answers accepted, of rights
    rights: int = 0
    rejected: int = 0  # with their own message, of mistakes
    mistakes: int = 0
    problems: list[str] = field(default_factory=list)

    def expect(self, wanted: str, function: Callable[..., object], what: str) -> bool:
        """Whether the check says what it should; if not, that is a problem."""
        said = verdict(self.exercise, function)
        if said != wanted:
            self.problems.append(f"{self.exercise.name}: {what}: the check says {said!r}, not {wanted!r}")
        return said == wanted


def audit(exercise: Exercise) -> Audit:
    """Try an exercise's check on the stub, on the right answers, and on the mistakes."""
    result = Audit(exercise)
    result.expect(NOT_WRITTEN, stub_function(exercise), "the stub")
    for function in (exercise.reference, *exercise.others):
        result.rights += 1
        result.right += result.expect(OK, function, f"the right answer {_name(function)}")
    if not exercise.others:
        result.problems.append(f"{exercise.name}: no other right answer is listed")
    for arguments in exercise.cases() if exercise.groups else ():
        rows = len(exercise.reference(*arguments))
        for name, of in exercise.groups(*arguments).items():
            if of.dtype != torch.bool or of.shape != (rows,):
                result.problems.append(f"{exercise.name}: the group {name!r} is not ({rows},) bool")
    for mistake in exercise.mistakes:
        result.mistakes += 1
        result.rejected += result.expect(mistake.message, mistake.function, "a mistake")
    for wanted, function, what in _general_mistakes(exercise):
        result.mistakes += 1
        result.rejected += result.expect(wanted, function, what)
    least = LEAST_OF_A_PART if exercise.part else LEAST_MISTAKES
    if len(exercise.mistakes) < least:
        result.problems.append(
            f"{exercise.name}: {len(exercise.mistakes)} mistakes are planted, {least} must be"
        )
    return result


def stub_function(exercise: Exercise) -> Callable[..., object]:
    """The function that the student is given."""
    scope: dict[str, object] = {}
    exec(exercise.blank, scope)
    return scope[exercise.name]


def _general_mistakes(exercise: Exercise) -> list[tuple[str, Callable[..., object], str]]:
    """Mistakes that can be made in any exercise."""

    def raising(*arguments: object) -> object:
        raise ArithmeticError("the planted one")

    line = raising.__code__.co_firstlineno + 1
    shown = f'raises ArithmeticError: the planted one (line {line}: raise ArithmeticError("the planted one"))'
    found = [(_with_inputs(exercise, shown), raising, "an exception")]
    position = next((i for i, a in enumerate(exercise.cases()[0]) if can_be_added_to(a)), None)
    if position is not None:

        def in_place(*arguments: object) -> object:
            answer = exercise.reference(*arguments)
            arguments[position].add_(1)
            return answer

        name = parameter_names(exercise)[position]
        found.append((f"changes its input in place: {name}", in_place, "a change in place"))
    for position in exercise.gradient:

        def deaf(*arguments: object, position: int = position) -> object:
            cut = (a.detach() if i == position else a for i, a in enumerate(arguments))
            return exercise.reference(*cut)

        found.append((without_gradient(exercise, [position]), deaf, "an argument that no gradient reaches"))
    return found


def can_be_added_to(argument: object) -> bool:
    """A tensor of numbers: 1 can be added to it in place, which True cannot stand."""
    return isinstance(argument, Tensor) and argument.dtype != torch.bool


def _with_inputs(exercise: Exercise, sentence: str) -> str:
    return f"{sentence} (for {describe(parameter_names(exercise), exercise.cases()[0])})"


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", repr(function))


def table(audits: list[Audit]) -> str:
    """One line an exercise."""
    rows = [("chapter", "exercise", "part", "right answers accepted", "mistakes rejected")]
    for a in audits:
        e = a.exercise
        rows.append(
            (
                f"{e.chapter:02d}",
                e.name,
                e.part or "-",
                f"{a.right} of {a.rights}",
                f"{a.rejected} of {a.mistakes}",
            )
        )
    rows.append(
        (
            "all",
            f"{len(audits)} exercises",
            f"{sum(bool(a.exercise.part) for a in audits)}",
            f"{sum(a.right for a in audits)} of {sum(a.rights for a in audits)}",
            f"{sum(a.rejected for a in audits)} of {sum(a.mistakes for a in audits)}",
        )
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
