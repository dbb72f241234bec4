"""The results of a class: a table as CSV, and a page with every message."""

from __future__ import annotations

import csv
import io
import os
from html import escape
from pathlib import Path

from minimrcnn.classroom import grading
from minimrcnn.classroom.fence import Limits, said
from minimrcnn.classroom.grading import OK, Grades
from minimrcnn.classroom.stopping import ANSWER_SECONDS
from minimrcnn.classroom.submissions import NOT_HANDED_IN, Assignment
from minimrcnn.errors import UserError

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px; margin: 2em auto }
body > * { margin-left: 1em; margin-right: 1em }
table { border-collapse: collapse; font-size: 14px }
.wide { overflow-x: auto }
th, td { border: 1px solid #c8c8c8; padding: 3px 8px; text-align: left; vertical-align: top }
thead th { background: #eef2f5 }
.wide td { text-align: center }
.ok { background: #d5e8f5 } .no { background: #fbe3cd } .none { background: #f2f2f2 }
code { font-size: 13px; overflow-wrap: anywhere }
footer { border-top: 1px solid #c8c8c8; margin-top: 2em; color: #444 }
"""


def write_report(
    out: Path, assignments: list[Assignment], grades: list[Grades], limits: Limits, *, of: int
) -> None:
    """Write out/grades.csv and out/grades.html, each as a whole or not at all.

    of: students in the class; the page says so while not all of them are graded.
    Raises UserError if the files cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "grades.csv", table(assignments, grades))
        _write(out / "grades.html", page(assignments, grades, limits, of))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # utf-8-sig for the table: without the mark, Excel reads names in the machine's old code page.
    encoding = "utf-8-sig" if path.suffix == ".csv" else "utf-8"
    try:
        temporary.write_text(text, encoding=encoding, errors="replace", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(assignments: list[Assignment], grades: list[Grades]) -> dict[str, list[str | None]]:
    """Each student's messages, in the order of the columns; None where nothing was handed in."""
    by_student: dict[str, dict[str, Grades]] = {}
    for one in grades:
        by_student.setdefault(one.student, {})[one.notebook] = one
    return {
        student: [_earned(of[a.name], name) for a in assignments for name in a.checks.values()]
        for student, of in by_student.items()
    }


def _earned(one: Grades, name: str) -> str | None:
    return one.messages[name] if one.handed_in else None


def _columns(assignments: list[Assignment]) -> list[tuple[str, str]]:
    """(number of the notebook, exercise) of each column."""
    return [(one.name.partition("_")[0], name) for one in assignments for name in one.checks.values()]


def table(assignments: list[Assignment], grades: list[Grades]) -> str:
    """The CSV: a row for each student; for each exercise 1, 0, or nothing if not handed in; and the sum."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = _columns(assignments)
    writer.writerow(["student", *(f"{number} {name}" for number, name in columns), "sum"])
    for student, messages in _rows(assignments, grades).items():
        points = ["" if message is None else int(message == OK) for message in messages]
        # A spreadsheet would run a folder's name that begins like a formula.
        name = f"'{student}" if student.startswith(("=", "+", "-", "@", "\t")) else student
        writer.writerow([name, *points, messages.count(OK)])
    return text.getvalue()


def page(assignments: list[Assignment], grades: list[Grades], limits: Limits, of: int) -> str:
    """The HTML page: the table, each student's messages, and what the results do not prove."""
    rows = _rows(assignments, grades)
    state = f"{len(rows)} students" if len(rows) == of else f"{len(rows)} of {of} students so far"
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Grades</title><style>{STYLE}</style>"
    return "\n".join(
        [
            head,
            f"<h1>Grades</h1><p>{state}, {len(_columns(assignments))} exercises. "
            "✓ right, · not, – not handed in.</p>",
            _overview(assignments, rows),
            *(_student(student, [one for one in grades if one.student == student]) for student in rows),
            _foot(limits),
            "</html>\n",
        ]
    )


def _overview(assignments: list[Assignment], rows: dict[str, list[str | None]]) -> str:
    columns = _columns(assignments)
    lines = ["<div class='wide'><table><thead><tr><th>student</th>"]
    lines += [f"<th>{escape(number)}<br>{escape(name)}</th>" for number, name in columns]
    lines.append("<th>sum</th></tr></thead>")
    for student, messages in rows.items():
        cells = "".join(_cell(message) for message in messages)
        link = f"<a href='#{_anchor(student)}'>{escape(student)}</a>"
        lines.append(f"<tr><th>{link}</th>{cells}<td>{messages.count(OK)}</td></tr>")
    right = [sum(row[i] == OK for row in rows.values()) for i in range(len(columns))]
    counts = "".join(f"<td>{count}</td>" for count in right)
    lines.append(f"<tr><th>students right</th>{counts}<td></td></tr>")
    return "\n".join(lines) + "</table></div>"


def _cell(message: str | None) -> str:
    if message is None:
        return f"<td class='none' title='{NOT_HANDED_IN}'>–</td>"
    kind, sign = ("ok", "✓") if message == OK else ("no", "·")
    return f"<td class='{kind}' title='{escape(message)}'>{sign}</td>"


def _anchor(student: str) -> str:
    """A link target without a character that HTML or a URL could take amiss."""
    return "student-" + student.encode(errors="replace").hex()


def _student(student: str, grades: list[Grades]) -> str:
    """One student's heading and what is wrong with each answer that is."""
    count = sum(len(one.messages) for one in grades)
    right = sum(message == OK for one in grades for message in one.messages.values())
    lines = [f"<h2 id='{_anchor(student)}'>{escape(student)}: {right} of {count}</h2>", "<table>"]
    for one in grades:
        wrong = {name: message for name, message in one.messages.items() if message != OK}
        if len(wrong) == len(one.messages) and len(set(wrong.values())) == 1 and len(wrong) > 1:
            wrong = {"all": next(iter(wrong.values()))}
        said_here = [*wrong.items(), *(("to look at", remark) for remark in one.remarks)]
        for name, message in said_here:
            lines.append(
                f"<tr><td>{escape(one.notebook)}</td><td>{escape(name)}</td><td><code>{escape(message)}</code></td></tr>"
            )
    return "\n".join(lines) + ("</table>" if len(lines) > 2 else "</table><p>Nothing is wrong.</p>")


def _foot(limits: Limits) -> str:
    """How this came about, and what it does not protect against: the words of grading's docstring."""
    _, how, against = grading.__doc__.split("\n\n", 2)
    bounds = f"Limits for a notebook: {limits.seconds:g} seconds, {limits.memory >> 20} MiB; "
    bounds += f"for one answer, in its check: {ANSWER_SECONDS:g} seconds (on Windows none)."
    return (
        f"<footer><p>{escape(how)}</p><p>{escape(said())} {bounds} A helper function that an answer needs "
        f"must stand in an answer cell: other cells are not taken.</p><p>{escape(against)}</p></footer>"
    )
