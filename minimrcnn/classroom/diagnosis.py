"""What is right or wrong with a student's function, in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor

from minimrcnn.classroom.answers import Unfit, equal, like, misfit, wrong_rows
from minimrcnn.classroom.calling import Outcome, call
from minimrcnn.classroom.exercise import Exercise
from minimrcnn.classroom.stopping import TimeUp, time_limit
from minimrcnn.threads import one_thread

OK = "ok"
NOT_WRITTEN = "not written yet"
CUT = "detach(), item(), no_grad(), NumPy or a copy cuts it off"


@dataclass
class Case:
    """One call: its arguments, what it should give and what it gave."""

    arguments: tuple
    wanted: object
    outcome: Outcome
    fault: str = ""


def verdict(exercise: Exercise, function: Callable[..., object]) -> str:
    """`ok`, `not written yet`, or what is wrong with a student's function. Raises nothing that it raises."""
    if not callable(function):
        return NOT_WRITTEN if function is None or function is Ellipsis else "is not a function"
    try:
        with one_thread():
            return _verdict(exercise, function)
    except TimeUp:
        return f"does not come to an end: stopped after {exercise.seconds:g} s"


def _verdict(exercise: Exercise, function: Callable[..., object]) -> str:
    all_arguments = exercise.cases()
    refused = _signature(exercise, function, all_arguments[0])
    if refused:
        return refused
    outcomes = []
    with time_limit(exercise.seconds):
        for arguments in all_arguments:
            outcomes.append(call(function, arguments))
            if outcomes[-1].is_stub:
                return NOT_WRITTEN
    changed = sorted({position for outcome in outcomes for position in outcome.changed})
    if changed:
        names = parameter_names(exercise)
        return f"changes its input in place: {', '.join(names[position] for position in changed)}"
    cases = []
    for arguments, outcome in zip(all_arguments, outcomes, strict=True):
        cases.append(Case(arguments, exercise.reference(*arguments), outcome))
        cases[-1].fault = _fault(exercise, cases[-1])
    faulty = next((case for case in cases if case.fault), None)
    if faulty is None:
        if not exercise.gradient:
            return OK
        with time_limit(exercise.seconds):
            return _cut_off(exercise, function, cases[0].arguments) or OK
    said = _by_mistake(exercise, cases)
    if said:
        return said
    with time_limit(exercise.seconds):
        return _in_general(exercise, function, faulty)


def parameter_names(exercise: Exercise) -> list[str]:
    """The names of the arguments, as the stub has them."""
    scope: dict[str, object] = {}
    exec(exercise.blank, scope)
    return list(inspect.signature(scope[exercise.name]).parameters)


def _signature(exercise: Exercise, function: Callable[..., object], arguments: tuple) -> str:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return f"cannot be called as {exercise.name}({', '.join(parameter_names(exercise))})"
    except ValueError:  # a builtin without a signature
        pass
    return ""


def _fault(exercise: Exercise, case: Case) -> str:
    if case.outcome.error is not None:
        return case.outcome.problem()
    wanted = like(case.wanted, case.wanted)
    try:
        answer = exercise.canonical(like(case.outcome.answer, wanted))
    except Unfit as why:
        return str(why)
    except Exception:  # too odd to be put in order
        answer = like(case.outcome.answer, wanted)
    return misfit(answer, exercise.canonical(wanted), exercise.tolerance)


def _by_mistake(exercise: Exercise, cases: list[Case]) -> str:
    """The sentence of the planted mistake that gives what the student's function gave; "" if there is none.

    It must explain every case; or, where there is more wrong than one thing, all up to the first wrong
    answer. Of several such mistakes the one that explains most cases is meant.
    """
    first = next(i for i, case in enumerate(cases) if case.fault)
    if cases[first].outcome.error is None and _same(exercise, cases[first], cases[first].wanted):
        return ""  # what is wrong is not a number: its dtype, say
    most, said = 0, ""
    for mistake in exercise.mistakes:
        explained = 0
        for number, case in enumerate(cases):
            if _explains(exercise, mistake.function, case):
                explained += 1
            elif number <= first:
                break
        else:
            if explained == len(cases):
                return mistake.message
            if explained > most and cases[first].outcome.error is None:
                most, said = explained, mistake.message
    return said


def _explains(exercise: Exercise, mistaken: Callable[..., object], case: Case) -> bool:
    """Whether a planted mistake gives in this case what the student's function gave."""
    planted = call(mistaken, case.arguments)
    if planted.error is not None or case.outcome.error is not None:
        return type(planted.error) is type(case.outcome.error)
    return _same(exercise, case, planted.answer)


def _same(exercise: Exercise, case: Case, answer: object) -> bool:
    """Whether the student's function gave the numbers of `answer` in this case."""
    try:
        mine, theirs = like(case.outcome.answer, case.wanted), like(answer, case.wanted)
        return equal(exercise.canonical(mine), exercise.canonical(theirs), exercise.tolerance)
    except Exception:  # too odd to be compared
        return False


def _cut_off(exercise: Exercise, function: Callable[..., object], arguments: tuple) -> str:
    """Which arguments of a right answer hear nothing of its gradient though they must, and why; or ""."""

    @wraps(function)  # an exception in it is told with the student's own line
    def heard(*given: object) -> list[bool]:
        sources = [given[position].requires_grad_() for position in exercise.gradient]
        total = _sum_of_all(function(*given))
        if not total.requires_grad:
            return [False] * len(sources)
        gradients = torch.autograd.grad(total, sources, allow_unused=True)
        return [gradient is not None and bool(gradient.any()) for gradient in gradients]

    with torch.enable_grad():
        outcome = call(heard, arguments)
    hears = outcome.answer or [False] * len(exercise.gradient)
    deaf = [position for position, it_does in zip(exercise.gradient, hears, strict=True) if not it_does]
    return without_gradient(exercise, deaf, outcome.problem() if outcome.error else CUT) if deaf else ""


def without_gradient(exercise: Exercise, positions: list[int], why: str = CUT) -> str:
    """The sentence for a right answer that hides its gradient from the arguments at these positions."""
    names = parameter_names(exercise)
    deaf = " and ".join(f"`{names[position]}`" for position in positions)
    return f"right numbers, but no gradient reaches {deaf}: {why}"


def _sum_of_all(answer: object) -> Tensor:
    """The numbers of all tensors of an answer, summed with different weights: a scalar.

    Without the weights a softmax would seem deaf, because its sum is 1 whatever it is computed from.
    """
    if isinstance(answer, Tensor):
        return (answer.flatten() * torch.arange(1, answer.numel() + 1)).sum()
    items = answer if isinstance(answer, list | tuple) else ()
    return sum((_sum_of_all(item) for item in items), torch.zeros(()))


# ---------------------------------------------------------------- no planted mistake: general sentences


def _in_general(exercise: Exercise, function: Callable[..., object], case: Case) -> str:
    given = f" (for {describe(parameter_names(exercise), case.arguments)})"
    if case.outcome.error is not None:
        return case.fault + given
    if not _repeats(exercise, function, case):
        return f"gives another answer when it is called again with the same input{given}"
    if exercise.batched and _right_alone(exercise, function, case):
        return f"mixes the pictures of a batch: each of them alone is right{given}"
    return _in_one_group(exercise, case) + case.fault + given


def _repeats(exercise: Exercise, function: Callable[..., object], case: Case) -> bool:
    again = call(function, case.arguments)
    if again.error is not None:
        return False
    try:
        first, second = like(case.outcome.answer, case.wanted), like(again.answer, case.wanted)
    except Unfit:
        return True  # the form is wrong: that is the thing to say
    return equal(first, second, exercise.tolerance)


def _right_alone(exercise: Exercise, function: Callable[..., object], case: Case) -> bool:
    for picture in range(len(case.arguments[exercise.batched[0]])):
        alone = tuple(
            argument[picture : picture + 1] if position in exercise.batched else argument
            for position, argument in enumerate(case.arguments)
        )
        one = Case(alone, exercise.reference(*alone), call(function, alone))
        if _fault(exercise, one):
            return False
    return True


def _in_one_group(exercise: Exercise, case: Case) -> str:
    """`only RoIs of a later picture are wrong: `, if it is so."""
    if exercise.groups is None:
        return ""
    try:
        answer, wanted = like(case.outcome.answer, case.wanted), like(case.wanted, case.wanted)
    except Unfit:
        return ""
    wrong = wrong_rows(answer, wanted, exercise.tolerance)
    if wrong is None:
        return ""
    for name, rows in exercise.groups(*case.arguments).items():
        if bool(wrong.any()) and not bool((wrong & ~rows).any()) and not bool(rows.all()):
            return f"only {name} are wrong: "
    return ""


def describe(names: list[str], arguments: tuple) -> str:
    """`a (5, 4), b (7, 4), plus_one 1`."""
    words = []
    for name, value in zip(names, arguments, strict=False):
        if isinstance(value, Tensor) and value.dim():
            words.append(f"{name} {tuple(value.shape)}")
        elif isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            words.append(f"{name} of {len(value)} tensors")
        else:
            value = value.item() if isinstance(value, Tensor) else value
            text = f"{value:.4g}" if isinstance(value, float) else repr(value)
            words.append(f"{name} {text}" if len(text) <= 40 else name)
    return ", ".join(words)
