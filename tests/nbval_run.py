"""pytest --nbval on one notebook, in a process of its own.

Of its own, because in ours every warning is an error, and what the kernel's client warns of is not ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
ENOUGH = 600  # seconds after which a notebook hangs, on a busy machine too: its budget is 120


@dataclass(frozen=True)
class Outcome:
    """What nbval found."""

    cells: int
    failed: list[int]  # numbers of code cells, counted from 0
    seconds: float  # of the whole process
    report: str


def run_nbval(path: Path, folder: Path, *, lax: bool = False) -> Outcome:
    """Run a notebook under nbval; folder: for its report."""
    report = folder / f"{path.stem}.xml"
    command = [
        *(sys.executable, "-m", "pytest", "--nbval-lax" if lax else "--nbval", "--nbval-current-env"),
        *("--nbval-sanitize-with", str(SANITIZE), "--nbval-cell-timeout", str(ENOUGH)),
        *("-c", os.devnull, "--rootdir", str(path.parent), "-p", "no:cacheprovider", "--noconftest"),
        *("--color", "no", "-q", "--junitxml", str(report), str(path)),
    ]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    # A thread that waits for another lets go of its core soon. It would hold it for milliseconds, hundreds of
    # times a step, and pytest and nbval want a core too: chapter 04 then trains at 2 s a step, not at .4 s.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "GOMP_SPINCOUNT": "1000"}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=ENOUGH,
            cwd=folder,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{path.name} takes more than {ENOUGH} seconds") from error
    seconds = time.perf_counter() - began
    assert report.exists(), f"nbval did not run {path.name}:\n{done.stdout}\n{done.stderr}"
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        _number(case) for case in cases if any(child.tag in ("failure", "error", "skipped") for child in case)
    ]
    return Outcome(len(cases), sorted(failed), seconds, done.stdout[-8000:])


def _number(case: ElementTree.Element) -> int:
    return int(re.search(r"Cell (\d+)", case.get("name"))[1])
