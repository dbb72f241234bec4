"""An end to endless loops: a block of code that may take some seconds and no more."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ANSWER_SECONDS = 10.0  # for one answer, in all calls of its check together
_said = False


class TimeUp(BaseException):
    """The time is over. Not an Exception, so that a student's `except Exception` does not swallow it."""


def can_stop() -> bool:
    """Whether `time_limit` works here: Windows has no SIGALRM, and signals reach the main thread only."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp inside the block once it has run for `seconds`, and again each half second after.

    Where the system cannot do that, the block runs on, and a note on stderr says so, once.
    """
    if not can_stop():
        _say_that_nothing_stops()
        yield
        return
    armed = True

    def stop(signal_number: int, frame: object) -> None:
        if armed:
            raise TimeUp

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again: a bare `except:` may catch the first
    try:
        try:
            yield
        finally:
            armed = False
    finally:  # reached also when the alarm rings between the block and `armed = False`
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _say_that_nothing_stops() -> None:
    global _said
    if not _said:
        _said = True
        print(
            "An endless loop is not stopped here (no SIGALRM on this system or in this thread): "
            "where a check does not answer, interrupt the kernel.",
            file=sys.stderr,
        )
