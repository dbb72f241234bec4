"""exercises start FOLDER: whatever happens, no work of a student's is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.classroom.starting import EXERCISES, NOTES, start
from minimrcnn.errors import UserError


def publish(path: Path, text: str) -> None:
    """Write a notebook of the course: a text, and a check with the output that it stores."""
    output = {"name": "stdout", "output_type": "stream", "text": ["iou: ok\n"]}
    check = {"cell_type": "code", "execution_count": 3, "outputs": [output], "source": ['check("iou", iou)']}
    cells = [{"cell_type": "markdown", "source": text.splitlines(keepends=True)}, check]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")


def read(path: Path) -> str:
    """The text that was published, or whatever else is in the file."""
    content = path.read_text(encoding="utf-8")
    return "".join(json.loads(content)["cells"][0]["source"]) if content.startswith("{") else content


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A course of two notebooks."""
    folder = tmp_path / "course"
    folder.mkdir()
    for name in ("03_a", "04_b"):
        publish(folder / f"{name}.ipynb", f"{name}, first edition")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.name: read(path) for path in folder.glob("*.ipynb")}


def test_the_first_time_everything_is_copied(course, tmp_path):
    work = tmp_path / "my" / "work"
    assert start(work, course) == ["03_a.ipynb: new", "04_b.ipynb: new"]
    assert texts(work) == texts(course)
    assert start(work, course) == ["03_a.ipynb: as it should be", "04_b.ipynb: as it should be"]
    assert {path.name for path in work.iterdir()} == {"03_a.ipynb", "04_b.ipynb", NOTES}


def test_in_a_copy_nothing_has_been_run(tmp_path):
    start(tmp_path / "work")
    start(tmp_path / "work2")
    outputs = 0
    for source in sorted(EXERCISES.glob("*.ipynb")):
        notebook = json.loads(source.read_text(encoding="utf-8"))
        copied = json.loads((tmp_path / "work" / source.name).read_text(encoding="utf-8"))
        for mine, shipped in zip(copied["cells"], notebook["cells"], strict=True):
            outputs += len(shipped.get("outputs", []))
            if mine["cell_type"] == "code":
                assert mine == shipped | {"outputs": [], "execution_count": None}
            else:
                assert mine | {"source": []} == shipped | {"source": []}
        assert copied | {"cells": []} == notebook | {"cells": []}
        assert (tmp_path / "work2" / source.name).read_bytes() == (
            tmp_path / "work" / source.name
        ).read_bytes()
    assert outputs > 50  # the files that are shipped keep them


def test_a_copy_is_written_as_nbformat_writes_it(tmp_path):
    start(tmp_path / "work")
    for path in (tmp_path / "work").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert nbformat.writes(nbformat.reads(text, as_version=4)) + "\n" == text


def test_a_newer_course_replaces_only_what_was_not_changed(course, tmp_path):
    work = tmp_path / "work"
    start(work, course)
    (work / "03_a.ipynb").write_text("my answer")
    assert start(work, course)[0] == "03_a.ipynb: yours, left alone"
    for path in course.iterdir():
        publish(path, f"{path.stem}, second edition")
    publish(course / "05_c.ipynb", "05_c")
    assert start(work, course) == [
        "03_a.ipynb: yours, left alone; the course's newer version is 03_a.newer.ipynb",
        "04_b.ipynb: brought up to date",
        "05_c.ipynb: new",
    ]
    assert texts(work) == {
        "03_a.ipynb": "my answer",
        "03_a.newer.ipynb": "03_a, second edition",
        "04_b.ipynb": "04_b, second edition",
        "05_c.ipynb": "05_c",
    }
    before = texts(work)
    start(work, course)
    assert texts(work) == before


def test_the_newer_version_may_be_worked_in_too(course, tmp_path):
    work = tmp_path / "work"
    start(work, course)
    (work / "03_a.ipynb").write_text("my answer")
    publish(course / "03_a.ipynb", "second edition")
    start(work, course)
    publish(course / "03_a.ipynb", "third edition")
    start(work, course)  # nobody changed the second: the third takes its place
    assert texts(work)["03_a.newer.ipynb"] == "third edition"
    (work / "03_a.newer.ipynb").write_text("my other answer")
    publish(course / "03_a.ipynb", "fourth edition")
    assert start(work, course)[0].endswith("newer version is 03_a.newer2.ipynb")
    assert texts(work) == {
        "03_a.ipynb": "my answer",
        "03_a.newer.ipynb": "my other answer",
        "03_a.newer2.ipynb": "fourth edition",
        "04_b.ipynb": "04_b, first edition",
    }


def test_every_link_of_a_copy_leads_to_a_file(tmp_path):
    work = tmp_path / "work"
    start(work)
    for path in work.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]+`", "", text)):  # not in code
            assert link.startswith("https://") or (work / link.partition("#")[0]).is_file(), (path.name, link)
        assert f"(`notebooks/{path.name}` in the course's folder)" in text


def test_a_link_to_a_chapter_becomes_its_name(course, tmp_path):
    text = (
        "See [the _RPN_](../notebooks/04_rpn.ipynb#Loss), [04](04_b.ipynb), [web](https://x.org/notebooks/a)."
    )
    publish(course / "03_a.ipynb", text)
    start(tmp_path / "work", course)
    assert read(tmp_path / "work" / "03_a.ipynb") == (
        "See the _RPN_ (`notebooks/04_rpn.ipynb` in the course's folder), [04](04_b.ipynb), "
        "[web](https://x.org/notebooks/a)."
    )
    assert start(tmp_path / "work", course)[0] == "03_a.ipynb: as it should be"


FILES = ("03_a.ipynb", "03_a.newer.ipynb", "03_a.newer2.ipynb", "04_b.ipynb")
EVENTS = st.one_of(
    st.tuples(st.just("the course has a new edition"), st.sampled_from(("03_a.ipynb", "04_b.ipynb"))),
    st.tuples(st.just("the student writes"), st.sampled_from(FILES)),
    st.tuples(st.just("the notes are lost"), st.just("")),
    st.tuples(st.just("start"), st.just("")),
)


@given(st.lists(EVENTS, max_size=12))
def test_nothing_that_a_student_wrote_is_ever_lost(events):
    with tempfile.TemporaryDirectory() as folder:
        course, work = Path(folder) / "course", Path(folder) / "work"
        course.mkdir()
        for name in ("03_a.ipynb", "04_b.ipynb"):
            publish(course / name, "first edition")
        start(work, course)
        written: dict[str, str] = {}
        worked_in: set[str] = set()  # editions that the student has had and changed
        for number, (event, name) in enumerate(events):
            if event == "start":
                start(work, course)
                newest = {read(path) for path in course.iterdir()}
                assert newest <= set(texts(work).values()) | worked_in
            elif event == "the student writes":
                worked_in.add(texts(work).get(name, ""))
                written[name] = f"the student's, {number}"
                (work / name).write_text(written[name])
            elif event == "the notes are lost":
                (work / NOTES).unlink(missing_ok=True)
            else:
                publish(course / name, f"{name}, edition {number}")
            assert written.items() <= texts(work).items()


def test_a_student_who_goes_back_to_the_course_s_version_gets_updates_again(course, tmp_path):
    work = tmp_path / "work"
    start(work, course)
    (work / "03_a.ipynb").write_text("mine")
    publish(course / "03_a.ipynb", "second edition")
    start(work, course)
    (work / "03_a.newer.ipynb").replace(work / "03_a.ipynb")
    assert start(work, course)[0] == "03_a.ipynb: as it should be"
    publish(course / "03_a.ipynb", "third edition")
    assert start(work, course)[0] == "03_a.ipynb: brought up to date"


def test_a_deleted_file_comes_back(course, tmp_path):
    start(tmp_path / "work", course)
    (tmp_path / "work" / "03_a.ipynb").unlink()
    assert start(tmp_path / "work", course)[0] == "03_a.ipynb: new"


@pytest.mark.parametrize("notes", [None, "{", "[1]", '"x"', '{"03_a.ipynb": 3}'])
def test_without_its_notes_every_file_is_the_student_s(course, tmp_path, notes):
    work = tmp_path / "work"
    start(work, course)
    (work / NOTES).unlink()
    if notes is not None:
        (work / NOTES).write_text(notes)
    publish(course / "03_a.ipynb", "second edition")
    start(work, course)
    assert texts(work)["03_a.ipynb"] == "03_a, first edition"
    assert texts(work)["03_a.newer.ipynb"] == "second edition"
    assert set(json.loads((work / NOTES).read_text())) == {"03_a.ipynb", "03_a.newer.ipynb", "04_b.ipynb"} - (
        {"03_a.ipynb"} if notes != '{"03_a.ipynb": 3}' else set()
    )


def test_files_of_one_name_that_were_there_before(course, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "03_a.ipynb").write_text("something of mine")
    (work / "04_b.ipynb").mkdir()
    start(work, course)
    assert (work / "03_a.ipynb").read_text() == "something of mine"
    assert (work / "04_b.ipynb").is_dir() and (work / "04_b.newer.ipynb").is_file()


def test_a_link_is_not_written_through(course, tmp_path):
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere.ipynb"
    start(work, course)
    elsewhere.write_text("03_a, first edition")
    (work / "03_a.ipynb").unlink()
    (work / "03_a.ipynb").symlink_to(elsewhere)
    publish(course / "03_a.ipynb", "second edition")
    start(work, course)
    assert (work / "03_a.ipynb").is_symlink() and elsewhere.read_text() == "03_a, first edition"


def test_bad_folders(course, tmp_path):
    with pytest.raises(UserError, match="holds no exercises"):
        start(tmp_path / "work", tmp_path / "nowhere")
    with pytest.raises(UserError, match="the course's own folder"):
        start(course / ".." / "course", course)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file: name a folder"):
        start(tmp_path / "file", course)
    with pytest.raises(UserError, match="cannot write to"):
        start(tmp_path / "file" / "work", course)


@pytest.mark.parametrize("text", ["", "[1]", '{"cells": ["a"]}', '{"cells": [{"cell_type": "code"', "\x00"])
def test_a_damaged_notebook_of_the_course_is_named(course, tmp_path, text):
    start(tmp_path / "work", course)
    (course / "04_b.ipynb").write_text(text)
    with pytest.raises(UserError, match=r"04_b.ipynb is damaged: .*exercises build"):
        start(tmp_path / "work", course)
    assert texts(tmp_path / "work")["04_b.ipynb"] == "04_b, first edition"


def test_starting_loads_nothing_heavy():
    code = (
        "import sys, minimrcnn.classroom.starting; sys.exit(bool({'torch', 'nbformat'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
