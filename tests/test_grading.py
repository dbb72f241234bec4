"""Grading a class: only answers count, and nothing that one student hands in costs another anything."""

from __future__ import annotations

import csv
import errno
import json
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pytest
from classroom_notebooks import RIGHT, answer_cell, exercise_notebook, hand_in, solved

from minimrcnn.__main__ import main
from minimrcnn.classroom import fence, grading
from minimrcnn.classroom.fence import Limits, run_fenced
from minimrcnn.classroom.grading import Grades, grade, grade_notebook
from minimrcnn.classroom.grading_report import page, table, write_report
from minimrcnn.classroom.kernel import kernel_environment
from minimrcnn.classroom.submissions import (
    Assignment,
    fill_in,
    find_notebook,
    read_answers,
    read_assignments,
)
from minimrcnn.errors import UserError

LIMITS = Limits(seconds=300, memory=1024 << 20)  # time enough for a busy machine
GO_ON = threading.Event()


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    hand_in(tmp_path / "exercises", exercise_notebook())
    (only,) = read_assignments(tmp_path / "exercises")
    return only


# ---------------------------------------------------------------- what is taken from a submission


def test_reads_the_exercises(assignment: Assignment) -> None:
    assert assignment.name == "01_doubling"
    assert assignment.checks == {"double-check": "double", "negate-check": "negate"}
    assert list(assignment.answers) == ["double-answer", "negate-answer"]


def test_only_answers_are_taken(assignment: Assignment, tmp_path: Path) -> None:
    cheat = solved(**RIGHT)
    for cell in cheat.cells:
        if cell.id.endswith("-check") or cell.id == "setup":
            cell.source = "print('double: ok')"
    cheat.cells.append(answer_cell("extra"))
    hand_in(tmp_path / "ana", cheat)
    filled, remarks = fill_in(assignment, read_answers(tmp_path / "ana" / "01_doubling.ipynb"))
    pristine = exercise_notebook()
    assert [cell.id for cell in filled.cells] == [cell.id for cell in pristine.cells]
    for ours, theirs in zip(filled.cells, pristine.cells, strict=True):
        expected = RIGHT.get(ours.id.removesuffix("-answer"), theirs.source)
        assert ours.source == expected
        assert not ours.get("outputs")
    assert remarks == []


def test_a_deleted_answer_is_told(assignment: Assignment) -> None:
    filled, remarks = fill_in(assignment, {"negate-answer": RIGHT["negate"]})
    assert "NotImplementedError" in filled.cells[2].source
    assert remarks == ["the answer cell double-answer is not in the file"]


def test_ids_that_an_editor_renewed(assignment: Assignment, tmp_path: Path) -> None:
    notebook = solved(**RIGHT)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"new-{i}"
    hand_in(tmp_path / "ana", notebook)
    filled, remarks = fill_in(assignment, read_answers(tmp_path / "ana" / "01_doubling.ipynb"))
    assert filled.cells[2].source == RIGHT["double"]
    assert remarks == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("from torchvision.ops import nms as double", "torchvision"),
        ("import minimrcnn.boxes as b\ndouble = b.iou", "minimrcnn"),
        ("def double(x):\n    return __import__('gc')", "__import__"),
        ("!rm -rf ~ ; import os", "os"),
    ],
)
def test_answers_to_look_at(assignment: Assignment, answer: str, told: str) -> None:
    _, remarks = fill_in(assignment, {"double-answer": answer, "negate-answer": RIGHT["negate"]})
    assert remarks == [f"the answer double-answer uses {told}: read it"]


def test_what_the_solution_uses_is_no_remark(tmp_path: Path) -> None:
    answer = "import sys\ndef double(x):\n    return 2 * x"
    hand_in(tmp_path / "exercises", exercise_notebook())
    hand_in(tmp_path / "solutions", solved(double=answer))
    (only,) = read_assignments(tmp_path / "exercises", tmp_path / "solutions")
    assert fill_in(only, {"double-answer": answer, "negate-answer": RIGHT["negate"]})[1] == []


BROKEN = {
    "cut off": (json.dumps(exercise_notebook())[:200], "broken JSON"),
    "no cells": ('{"metadata": {}}', "no notebook of format 4"),
    "a list": ("[1, 2]", "no notebook of format 4"),
    "cells of text": ('{"cells": ["a"]}', "no notebook of format 4"),
    "metadata of text": (
        '{"cells": [{"cell_type": "code", "id": "a", "metadata": "x"}]}',
        "no notebook of format 4",
    ),
    "deep": ("[" * 100_000, "no notebook of format 4"),
    "empty": ("", "broken JSON"),
    "format 3": ('{"worksheets": [{"cells": []}], "nbformat": 3}', "no notebook of format 4"),
}


@pytest.mark.parametrize(("text", "told"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_reported(text: str, told: str, tmp_path: Path) -> None:
    hand_in(tmp_path, text)
    with pytest.raises(UserError, match=f"^cannot be read: {told} "):
        read_answers(tmp_path / "01_doubling.ipynb")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "01.ipynb").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read: its bytes are not UTF-8"):
        read_answers(tmp_path / "01.ipynb")


def test_finds_the_file_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not handed in"):
        find_notebook(tmp_path, "01_doubling")
    hand_in(tmp_path / ".ipynb_checkpoints", "{}", "01_doubling-checkpoint.ipynb")
    hand_in(tmp_path, "{}", "011.ipynb")
    hand_in(tmp_path / "week1", "{}", "01 (1).ipynb")
    assert find_notebook(tmp_path, "01_doubling").name == "01 (1).ipynb"
    hand_in(tmp_path / "week2", "{}", "01_doubling.ipynb")
    assert find_notebook(tmp_path, "01_doubling").parent.name == "week2"
    hand_in(tmp_path / "week3", "{}", "01_doubling.ipynb")
    with pytest.raises(UserError, match=r"more than once.*week2/01_doubling.ipynb, week3"):
        find_notebook(tmp_path, "01_doubling")


def test_a_link_to_another_student_is_refused(tmp_path: Path) -> None:
    hand_in(tmp_path / "ben", solved(**RIGHT))
    (tmp_path / "ana").mkdir()
    try:
        (tmp_path / "ana" / "01_doubling.ipynb").symlink_to(tmp_path / "ben" / "01_doubling.ipynb")
    except OSError:
        pytest.skip("this system lets no ordinary user make links")
    with pytest.raises(UserError, match="link"):
        find_notebook(tmp_path / "ana", "01_doubling")


# ---------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("iou: ok\n", "ok"),
        ("iou: x and y are swapped\n", "x and y are swapped"),
        ("ok\n", "the check did not print its line"),
        ("", "the check did not print its line"),
        ("iou: ok\niou: ok\n", "ok\niou: ok"),
        ("area: ok\n", "area: ok"),
        ("iou: ok\niou: not written yet\n", "ok\niou: not written yet"),
        (None, "why not"),
    ],
)
def test_one_line_and_nothing_else_earns(printed: str | None, message: str) -> None:
    assert grading._message("iou", printed, "why not") == message


# ---------------------------------------------------------------- the report


class _Text(HTMLParser):
    """All tags and all text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def _grades(student: str, double: str, negate: str, *remarks: str) -> Grades:
    return Grades(student, "01_doubling", {"double": double, "negate": negate}, list(remarks))


def _absent(student: str) -> Grades:
    messages = dict.fromkeys(("double", "negate"), "not handed in")
    return Grades(student, "01_doubling", messages, [], "not handed in")


def test_the_table(assignment: Assignment) -> None:
    grades = [_grades("ana", "ok", "wrong"), _grades("=1+1", "ok", "ok"), _absent("cyd")]
    text = table([assignment], grades)
    assert list(csv.reader(text.splitlines())) == [
        ["student", "01 double", "01 negate", "sum"],
        ["ana", "1", "0", "1"],
        ["'=1+1", "1", "1", "2"],
        ["cyd", "", "", "0"],
    ]


def test_the_page_tells_what_is_wrong_from_what_was_not_handed_in(assignment: Assignment) -> None:
    shown = page([assignment], [_grades("ana", "ok", "wrong"), _absent("cyd")], LIMITS, of=2)
    assert [shown.count(f"<td class='{kind}'") for kind in ("ok", "no", "none")] == [1, 1, 2]
    assert _Text(shown).text.count("not handed in") == 2  # what the sign means, and one row for cyd


def test_the_limit_for_one_answer_is_said(assignment: Assignment, capsys: pytest.CaptureFixture[str]) -> None:
    assert "for one answer, in its check: 10 seconds" in page([assignment], [], LIMITS, of=0)
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    assert "one answer is stopped by its check after\n10 seconds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("grades", "line"),
    [
        (_grades("ana", "ok", "wrong"), "ana: 1 of 2"),
        (_absent("cyd"), "cyd: 0 of 2, 01_doubling.ipynb not handed in"),
        (
            Grades("eve", "01_doubling", {"double": "ok", "negate": "no"}, [], "was stopped: it met a limit"),
            "eve: 1 of 2, 01_doubling.ipynb was stopped: it met a limit",
        ),
    ],
)
def test_a_students_line(grades: Grades, line: str) -> None:
    assert grading.summary([grades]) == line


def test_a_line_can_always_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    grading.tell("J\u00f6rg\x1b[2J\udcff: 1 of 2")
    assert capsys.readouterr().out == "J\u00f6rg?[2J?: 1 of 2\n"


def test_the_page_shows_messages_and_runs_nothing(assignment: Assignment) -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=y>"
    read = _Text(page([assignment], [_grades(evil, evil, "ok", evil)], LIMITS, of=2))
    assert not {"script", "img"} & read.tags
    assert read.text.count(evil) >= 4  # table, heading, message, remark
    assert "1 of 2 students so far" in read.text
    assert "What this does not protect against" in read.text
    assert fence.said() in read.text


def test_the_report_is_whole_or_the_old_one(assignment: Assignment, tmp_path: Path) -> None:
    write_report(tmp_path / "out", [assignment], [_grades("ana", "ok", "ok")], LIMITS, of=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["grades.csv", "grades.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "file", [assignment], [], LIMITS, of=1)


# ---------------------------------------------------------------- the fence


def _fenced(code: str, folder: Path, limits: Limits, heard: list[str] | None = None) -> str:
    hear = (heard if heard is not None else []).append
    command = [sys.executable, "-S", "-c", code]
    return run_fenced(command, limits, folder=folder, environment={}, hear=hear, stop=GO_ON)


def test_lets_through_what_ends_by_itself(tmp_path: Path) -> None:
    heard: list[str] = []
    assert _fenced("print('a'); print('b', end='')", tmp_path, LIMITS, heard) == ""
    assert heard == ["a\n"]  # a line that was not finished is not believed


def test_stops_at_the_time_limit_with_all_that_was_started(tmp_path: Path) -> None:
    child = "import time; time.sleep(600.25)"
    run = f"subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    code = f"import subprocess, sys; {run}"
    assert _fenced(code, tmp_path, Limits(3, 1 << 30)) == "the time limit of 3 seconds"
    time.sleep(0.5)
    left = [p for p in psutil.process_iter(["cmdline"]) if child in (p.info["cmdline"] or [])]
    assert left == []


def test_stops_at_the_memory_limit_of_all_processes_together(tmp_path: Path) -> None:
    child = "import time; a = bytearray(60 << 20); time.sleep(600)"
    code = (
        "import subprocess, sys, time\n"
        f"a = [subprocess.Popen([sys.executable, '-S', '-c', {child!r}]) for _ in range(3)]\n"
        "time.sleep(600)"
    )
    assert _fenced(code, tmp_path, Limits(120, 128 << 20)) == "the memory limit of 128 MiB"


def test_stops_when_told(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    said = run_fenced(command, LIMITS, folder=tmp_path, environment={}, hear=print, stop=stop)
    assert said == "an interruption"


def test_there_is_no_network_inside(tmp_path: Path) -> None:
    if not fence.prefix():
        pytest.skip("this system does not let an ordinary user cut the network off")
    heard: list[str] = []
    assert (
        _fenced("import socket; print([n for _, n in socket.if_nameindex()])", tmp_path, LIMITS, heard) == ""
    )
    assert heard == ["['lo']\n"]


WRITE = """
import os, sys
for place in sys.argv[1:]:
    try:
        open(place, "w").close()
        print("wrote")
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
UNDO = """
import ctypes, struct, sys
from minimrcnn.classroom import shut_in as s
attributes = struct.pack("4Q", 0, s.MOUNT_ATTR_RDONLY, 0, 0)
call = ctypes.CDLL(None).syscall
print(call(s.SYS_MOUNT_SETATTR, s.AT_FDCWD, b"/", s.AT_RECURSIVE, attributes, ctypes.c_size_t(32)))
try:
    open(sys.argv[1], "w").close()
    print("wrote")
except OSError as error:
    print(type(error).__name__, error.errno)
"""
SHUT_IN = """
import os, subprocess, sys
from pathlib import Path
from minimrcnn.classroom.shut_in import give_up_rights, read_only_except
inside, outside, write, undo_it = sys.argv[1:]
read_only_except(Path(inside))
give_up_rights()
places = [inside + "/a", outside + "/a", outside + "/old", f"/proc/{os.getpid()}/fd/1"]
print(subprocess.run([sys.executable, "-c", write, *places], capture_output=True, text=True).stdout)
for before in ([], ["unshare", "--map-root-user", "--mount"]):
    undo = [*before, sys.executable, "-c", undo_it, outside + "/a"]
    done = subprocess.run(undo, capture_output=True, text=True)
    print(done.stdout or done.stderr)
"""


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    if not fence.writes_are_kept_in():
        pytest.skip("this system does not let an ordinary user make file systems read-only")
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("good")
    command = [*fence.APART, sys.executable, "-c", SHUT_IN, str(inside), str(outside), WRITE, UNDO]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=kernel_environment())
    read_only = f"OSError {errno.EROFS}"
    first, *undone = done.stdout.strip().split("\n\n")
    # In the folder; beside it; over a file that is there; into what the parent says.
    assert first.splitlines() == ["wrote", read_only, read_only, f"PermissionError {errno.EACCES}"]
    # Nobody can undo it. Some systems refuse the namespace in which to try, others the trial.
    assert undone[0] == f"-1\n{read_only}"
    assert undone[1] in (undone[0], "unshare: write failed /proc/self/uid_map: Operation not permitted")
    assert (outside / "old").read_text() == "good"


# ---------------------------------------------------------------- the whole, with kernels


def test_no_students_and_no_exercises(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    hand_in(tmp_path / "exercises", exercise_notebook())
    with pytest.raises(UserError, match="no exercise notebook"):
        grade(tmp_path, tmp_path / "out", exercises=tmp_path / "empty", limits=LIMITS)
    with pytest.raises(UserError, match="one for each student"):
        grade(tmp_path / "empty", tmp_path / "out", exercises=tmp_path / "exercises", limits=LIMITS)
    with pytest.raises(UserError, match="no folder"):
        grade(tmp_path / "nowhere", tmp_path / "out", exercises=tmp_path / "exercises", limits=LIMITS)
    with pytest.raises(UserError, match=r"no exercise notebook 07\. There are: 01_doubling"):
        grade(tmp_path, tmp_path, exercises=tmp_path / "exercises", only=("07",), limits=LIMITS)
    hand_in(tmp_path / "students" / "ana", solved(**RIGHT), "homework.ipynb")
    with pytest.raises(UserError, match=r"nothing was handed in.*ana/01_doubling.ipynb"):
        grade(tmp_path / "students", tmp_path / "out", exercises=tmp_path / "exercises", limits=LIMITS)


def test_chapters_that_nobody_handed_in_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def right(notebook: object, one: Assignment, *more: object) -> tuple[dict[str, str], list[str], str]:
        return dict.fromkeys(one.checks.values(), "ok"), [], ""

    monkeypatch.setattr(grading, "_run", right)
    students, out = tmp_path / "submitted", tmp_path / "out"
    for number in ("01", "02", "03"):
        hand_in(tmp_path / "exercises", exercise_notebook(), f"{number}_doubling.ipynb")
    hand_in(students / "ana", solved(**RIGHT), "01_doubling.ipynb")
    hand_in(students / "ben", "{", "03_doubling.ipynb")
    arguments = ["grade", str(students), "--exercises", str(tmp_path / "exercises"), "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [
        "grading 01_doubling, 03_doubling; students: 2",
        "ana: 2 of 4, 03_doubling.ipynb not handed in",
        "ben: 0 of 4, 01_doubling.ipynb not handed in, 03_doubling.ipynb cannot be read: broken JSON "
        "(line 1: Expecting property name enclosed in double quotes)",
    ]
    assert printed[3].startswith("2 students, 4 answers handed in, 2 right. ")
    rows = list(csv.reader((out / "grades.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert rows == [
        ["student", "01 double", "01 negate", "03 double", "03 negate", "sum"],
        ["ana", "1", "1", "", "", "2"],
        ["ben", "", "", "0", "0", "0"],
    ]
    assert main([*arguments, "--only", "02"]) == 0  # what is named is graded
    assert "ana: 0 of 2, 02_doubling.ipynb not handed in" in capsys.readouterr().out


FORGED = """
print("double: ok")
check = lambda name, function: print(f"{name}: ok")
import builtins
builtins.print = lambda *words: None
def double(x):
    return 7
"""
CLASS = {
    # double, negate: what is said of each
    "right": (RIGHT["double"], "ok", "ok"),
    "stub": ("", "not written yet", "ok"),
    "wrong": ("def double(x):\n    return 3 * x", "wrong", "ok"),
    "syntax": (
        "def double(x) return",
        "the cell raises SyntaxError: expected ':' (line 1); "
        "so the check: NameError: name 'double' is not defined",
        "ok",
    ),
    "untidy": (f"{RIGHT['double']}\nprint(undefined)", "ok", "ok"),
    "forged": (FORGED, "wrong", "ok"),
    "memory": ("def double(x):\n    return bytearray(4 << 30)", "raises MemoryError: ", "ok"),
    "exit": (
        "import os\nos._exit(0)",
        "not reached: the kernel ended in cell double-answer",
        "not reached: the kernel ended in cell double-answer",
    ),
}


@pytest.mark.slow
def test_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_in(tmp_path / "exercises", exercise_notebook())
    students = tmp_path / "submitted"
    for student, (double, _, _) in CLASS.items():
        answers = {"negate": RIGHT["negate"]} | ({"double": double} if double else {})
        hand_in(students / student / "some" / "folder", solved(**answers))
    hand_in(students / "torn", BROKEN["cut off"][0])
    (students / "absent").mkdir()
    arguments = ["--exercises", str(tmp_path / "exercises"), "--out", str(tmp_path / "out")]
    assert main(["grade", str(students), *arguments, "--memory", "1024", "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "10 students, 18 answers handed in, 9 right" in printed
    assert "\nabsent: 0 of 2, 01_doubling.ipynb not handed in\n" in printed
    assert (
        "\nexit: 0 of 2, 01_doubling.ipynb was stopped: its kernel ended in cell double-answer\n" in printed
    )
    assert "\nwrong: 1 of 2\n" in printed
    rows = csv.DictReader((tmp_path / "out" / "grades.csv").read_text(encoding="utf-8-sig").splitlines())
    earned = {row["student"]: (row["01 double"], row["01 negate"]) for row in rows}
    expected = {name: tuple(str(int(m == "ok")) for m in messages) for name, (_, *messages) in CLASS.items()}
    assert earned == expected | {"torn": ("0", "0"), "absent": ("", "")}
    text = _Text((tmp_path / "out" / "grades.html").read_text(encoding="utf-8")).text
    for _, *messages in CLASS.values():
        assert all(message in text for message in messages if message != "ok")
    assert "to look atthe cell double-answer raises NameError: name 'undefined' is not defined" in text
    assert "not handed in" in text


@pytest.mark.slow
def test_a_hang_costs_what_comes_after_it(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def run_until_it_hangs(*arguments: object, hear, **more: object) -> str:
        def hear_and_stop(line: str) -> None:
            hear(line)
            if json.loads(line).get("at") == "negate-answer":
                stop.set()  # at once, where the time limit would wait: tested above, by itself

        return run_fenced(*arguments, hear=hear_and_stop, **more)

    monkeypatch.setattr(grading, "run_fenced", run_until_it_hangs)
    hand_in(tmp_path / "ana", solved(double=RIGHT["double"], negate="while True: pass"))
    grades = grade_notebook(tmp_path / "ana", assignment, LIMITS, stop)
    assert grades.messages == {
        "double": "ok",
        "negate": "not reached: the notebook met an interruption in cell negate-answer",
    }
    assert grades.trouble == "was stopped: it met an interruption in cell negate-answer"


def test_help_needs_no_torch() -> None:
    code = "import sys, minimrcnn.__main__ as m\ntry: m.main(['grade', '--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'nbclient' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
