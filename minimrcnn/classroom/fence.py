"""A fence around a program that may do anything: limits of time and memory, no network where possible.

It keeps accidents in, not attackers. What the system offers an ordinary user is used: on Linux a namespace
with no network and no other process in it, where one folder alone can be written to (`unshare`; some
containers forbid it), and a limit on the memory of each process; everywhere, a watch over the memory of them
all and over the clock.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from minimrcnn.classroom.kernel import kernel_environment

# The first that works is used: network, processes and mounts apart; the network alone; nothing.
APART = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
OFFLINE = ("unshare", "--map-root-user", "--net")
PAUSE = 0.1  # seconds between two looks at the memory


@dataclass(frozen=True)
class Limits:
    """What a fenced program may use."""

    seconds: float  # of the clock
    memory: int  # bytes, of all its processes together


@functools.cache
def prefix() -> tuple[str, ...]:
    """What stands before a command to cut it off; () where this system does not allow it."""
    for words in (APART, OFFLINE):
        try:
            probe = subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if probe.returncode == 0:
            return words
    return ()


def kind() -> str:
    """ "apart", "offline" or "none": what `prefix` does."""
    return {APART: "apart", OFFLINE: "offline"}.get(prefix(), "none")


@functools.cache
def writes_are_kept_in() -> bool:
    """Whether a fenced notebook can write to its own folder alone; a trial with a file beside it."""
    if kind() != "apart":
        return False
    trial = (
        "import sys; from pathlib import Path; from minimrcnn.classroom.shut_in import read_only_except\n"
        "read_only_except(Path(sys.argv[1])); Path(sys.argv[1], 'in').touch(); Path(sys.argv[2]).touch()"
    )
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as beside:
        outside = Path(beside) / "out"
        command = [*APART, sys.executable, "-c", trial, folder, str(outside)]
        subprocess.run(command, capture_output=True, env=kernel_environment())
        return (Path(folder) / "in").exists() and not outside.exists()


def said() -> str:
    """In two or three sentences: what the fence cuts off on this system."""
    if kind() == "none":
        network = "The network was NOT cut off: this system does not let an ordinary user do so."
    else:
        network = "Each notebook ran without the network."
    if writes_are_kept_in():
        return f"{network} It saw no process but its own, and could write to a folder of its own alone."
    if kind() == "apart":
        return f"{network} It saw no process but its own, but could write wherever you can."
    return (
        f"{network} It could write wherever you can, and a process that it left behind may still be running."
    )


def run_fenced(
    command: list[str],
    limits: Limits,
    *,
    folder: Path,
    environment: dict[str, str],
    hear: Callable[[str], None],
    stop: threading.Event,
) -> str:
    """Run a command in a folder, to its end or to a limit; every process that it started ends with it.

    hear: is called with each line of its standard output. stop: ends it early when set. Returns "" where it
    ended by itself, else which limit it met, in words.
    """
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*prefix(), *command],
        cwd=folder,
        env=environment,
        stdin=quiet,
        stdout=subprocess.PIPE,
        stderr=quiet,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in the terminal is for the grader
    )
    listener = threading.Thread(target=_listen, args=(process, hear), daemon=True)
    listener.start()
    try:
        return _watch(process, limits, stop)
    finally:
        _end(process)
        listener.join(timeout=10)


def _listen(process: subprocess.Popen, hear: Callable[[str], None]) -> None:
    with process.stdout as lines:
        for line in lines:
            if line.endswith("\n"):  # else it was killed while it wrote
                hear(line)


def _watch(process: subprocess.Popen, limits: Limits, stop: threading.Event) -> str:
    end = time.monotonic() + limits.seconds
    while process.poll() is None:
        if time.monotonic() > end:
            return f"the time limit of {limits.seconds:g} seconds"
        if sum(_memory(one) for one in _family(process)) > limits.memory:
            return f"the memory limit of {limits.memory >> 20} MiB"
        if stop.wait(PAUSE):
            return "an interruption"
    return ""


def _family(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        head = psutil.Process(process.pid)
        return [head, *head.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has just ended
        return 0


def _end(process: subprocess.Popen) -> None:
    """Kill the whole family; a kernel has a session of its own, so a signal to the group would miss it."""
    for one in reversed(_family(process)):
        try:
            one.kill()
        except psutil.Error:
            continue
    process.wait()
