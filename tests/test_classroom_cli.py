"""python -m minimrcnn exercises start | build | audit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from classroom_solution import write_solution

from minimrcnn import __main__ as cli
from minimrcnn.classroom import auditing, building, starting


@pytest.fixture
def course(monkeypatch, tmp_path):
    """A course of one notebook, where the commands look for it."""
    solutions, exercises = write_solution(tmp_path / "solutions").parent, tmp_path / "exercises"
    monkeypatch.setattr(building.build, "__defaults__", (solutions, exercises))
    monkeypatch.setattr(starting.start, "__defaults__", (exercises,))
    return exercises


def test_build_then_start(course, tmp_path, capsys):
    assert cli.main(["exercises", "build", "--check"]) == 1
    assert "04_rpn.ipynb: differs" in capsys.readouterr().out
    assert cli.main(["exercises", "build"]) == 0
    assert f"{course / '04_rpn.ipynb'}: written" in capsys.readouterr().out
    assert cli.main(["exercises", "build", "--check"]) == 0
    assert cli.main(["exercises", "start", str(tmp_path / "work")]) == 0
    assert "04_rpn.ipynb: new" in capsys.readouterr().out
    assert (tmp_path / "work" / "04_rpn.ipynb").read_bytes() == starting.copy_of(course / "04_rpn.ipynb")
    assert cli.main(["exercises", "start", str(course)]) == 2


def test_audit(capsys, monkeypatch):
    assert cli.main(["exercises", "audit", "--chapter", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].split()[:2] == ["chapter", "exercise"] and printed.err == ""
    assert len(printed.out.splitlines()) == 6
    monkeypatch.setattr(auditing, "OK", "fine")  # what no check says: every right answer is a problem now
    assert cli.main(["exercises", "audit", "--chapter", "4"]) == 1
    assert "the check says 'ok', not 'fine'" in capsys.readouterr().err
    assert cli.main(["exercises", "audit", "--chapter", "77"]) == 2


@pytest.mark.parametrize("words", [[], ["start"], ["build"], ["audit"]], ids=" ".join)
def test_help_answers_without_torch(words):
    code = (
        "import sys\nfrom minimrcnn.__main__ import main\n"
        f"try: main(['exercises', *{words!r}, '--help'])\n"
        "except SystemExit as ended: sys.exit(ended.code or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert f"python -m minimrcnn {' '.join(['exercises', *words])}" in done.stdout
