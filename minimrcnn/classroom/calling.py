"""A student's function called with care: whatever it does, there is an outcome to speak about."""

from __future__ import annotations

import contextlib
import inspect
import io
import traceback
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch

from minimrcnn.classroom.answers import identical


@dataclass
class Outcome:
    """What one call came to."""

    answer: object = None
    error: BaseException | None = None
    where: str = ""  # the line of the student's code that raised it
    changed: tuple[int, ...] = ()  # positions of the arguments that the function wrote into

    @property
    def is_stub(self) -> bool:
        """Nothing was written yet: NotImplementedError, or no answer at all."""
        if isinstance(self.error, NotImplementedError):
            # PyTorch raises it too, of an operator that does not know a dtype: that one has a text.
            return not str(self.error) or "raise NotImplementedError" in self.where
        return self.error is None and _empty(self.answer)

    def problem(self) -> str:
        """`raises TypeError: ... (line 3: x + y)`."""
        if isinstance(self.error, SystemExit):
            return f"ends the program with exit(){self.where}"
        text = " ".join(str(self.error).split())
        text = text if len(text) <= 200 else text[:200] + " ..."
        name = type(self.error).__name__
        return f"raises {name}: {text}{self.where}" if text else f"raises {name}{self.where}"


def _empty(answer: object) -> bool:
    if isinstance(answer, tuple | list) and answer:
        return all(item is None or item is Ellipsis for item in answer)
    return answer is None or answer is Ellipsis


def call(function: Callable[..., object], arguments: tuple) -> Outcome:
    """Call the function with copies of the arguments, its prints and warnings kept away.

    Raises TimeUp if a time limit around it runs out; of what the function raises, KeyboardInterrupt alone.
    """
    given = tuple(deepcopy(argument) for argument in arguments)  # one by one: two may be the same tensor
    try:
        with _quiet():
            outcome = Outcome(function(*given))
    except (Exception, SystemExit) as error:
        return Outcome(error=error, where=_line(function, error))
    changed = (i for i, pair in enumerate(zip(given, arguments, strict=True)) if not identical(*pair))
    outcome.changed = tuple(changed)
    return outcome


class _Nowhere(io.TextIOBase):
    """Takes any text and keeps none: a loop that prints for seconds must not fill the memory."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def _quiet():
    """No prints, no warnings, and the state of the random numbers as it was."""
    nowhere = _Nowhere()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        yield


def _line(function: Callable[..., object], error: BaseException) -> str:
    """` (line 3: x + y)`, the innermost line in the file or the cell that defines the function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    if not frames:
        return ""
    return (
        f" (line {frames[-1].lineno}: {frames[-1].line})"
        if frames[-1].line
        else f" (line {frames[-1].lineno})"
    )
