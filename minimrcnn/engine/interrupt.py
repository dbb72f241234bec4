"""Ctrl-C, and the SIGTERM of a cluster: finish the step, save, and say how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether this process was asked to stop."""

    requested: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within the body the first SIGINT or SIGTERM only sets `requested`; the second ends it at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return

    here = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:
            return  # a loader's worker, forked from here: the training, which goes on, will end it
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        # Not print: a signal may arrive in the middle of one.
        os.write(2, b"\nstopping after this step; once more to stop at once, without saving\n")

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resume_command(argv: list[str] | None = None, world: int = 1) -> str:
    """The command that goes on with this run: the one that began it, and `--resume`."""
    program, *arguments = sys.argv if argv is None else argv
    if "minimrcnn" not in (Path(program).name, Path(program).parent.name):  # started from Python
        return "train(..., resume=True), with the same arguments"
    launcher = (
        ["python"] if world == 1 else ["torchrun", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]
    )
    words = [*launcher, "-m", "minimrcnn", *arguments, *([] if "--resume" in arguments else ["--resume"])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
