"""Exercise notebooks made from solutions: the same bytes each time, and good for nbval and for nbgrader."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from classroom_solution import ANSWERS, solution, write_solution
from nbval_run import run_nbval

from minimrcnn.classroom import building
from minimrcnn.classroom.building import BEGIN, END, build, cleared
from minimrcnn.classroom.chapters import all_exercises, of_chapter
from minimrcnn.errors import UserError

NAMES = [e.name for e in of_chapter(4)]


@pytest.fixture
def course(tmp_path: Path) -> tuple[Path, Path]:
    """The folders solutions/, with a notebook, and exercises/, empty."""
    write_solution(tmp_path / "solutions")
    return tmp_path / "solutions", tmp_path / "exercises"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_the_exercise_is_the_solution_without_its_answers(course):
    written = build(*course)
    assert sorted(written) == [course[1] / "04_rpn.ipynb", course[0] / "04_rpn.ipynb"]
    solved, exercise = (read(folder / "04_rpn.ipynb") for folder in course)
    nbformat.validate(exercise)
    assert [c.id for c in exercise.cells] == [c.id for c in solved.cells]
    assert len({c.id for c in exercise.cells}) == len(exercise.cells)
    for cell, other in zip(exercise.cells, solved.cells, strict=True):
        if cell.id in NAMES:
            assert cell.source == all_exercises()[cell.id].blank and "SOLUTION" in other.source
        else:
            assert cell.source == other.source
        if cell.cell_type == "code" and not cell.id.endswith("-check"):
            assert cell.outputs == [] and cell.execution_count is None


def test_check_cells_carry_what_nbval_and_nbgrader_need(course):
    build(*course)
    for cell in read(course[1] / "04_rpn.ipynb").cells:
        if cell.id.endswith("-check"):
            name = cell.id.removesuffix("-check")
            assert cell.source == f'check("{name}", {name})' and cell.execution_count is not None
            assert [o.text for o in cell.outputs] == [f"{name}: ok\n"]
            assert cell.metadata.tags == ["nbval-check-output"] and cell.metadata.editable is False
            about = cell.metadata.nbgrader
            assert (about.grade, about.locked, about.solution) == (True, True, False)
            assert about.points == all_exercises()[name].difficulty and about.grade_id == cell.id
        elif cell.id in NAMES:
            about = cell.metadata.nbgrader
            assert (about.grade, about.locked, about.solution) == (False, False, True)
            assert about.grade_id == cell.id and about.schema_version == 3
        else:
            assert "nbgrader" not in cell.metadata


def test_a_second_build_changes_nothing(course):
    assert build(*course, check=True) and not course[1].exists()  # with check nothing is written
    build(*course)
    before = {path: path.read_bytes() for folder in course for path in folder.iterdir()}
    assert build(*course) == [] and build(*course, check=True) == []
    assert {path: path.read_bytes() for folder in course for path in folder.iterdir()} == before


def test_ids_do_not_depend_on_the_editor(course):
    build(*course)
    first = (course[1] / "04_rpn.ipynb").read_bytes()
    write_solution(course[0])  # written anew: nbformat gives every cell another random id
    build(*course)
    assert (course[1] / "04_rpn.ipynb").read_bytes() == first


@pytest.mark.parametrize("which", [0, 1], ids=["solution", "exercise"])
def test_check_notices_any_change(course, which):
    build(*course)
    path = course[which] / "04_rpn.ipynb"
    content = json.loads(path.read_text())
    content["cells"][0]["source"] = ["# Another title"]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    differing = build(*course, check=True)
    assert course[1] / "04_rpn.ipynb" in differing
    assert json.loads(path.read_text()) == content


def edited(change) -> nbformat.NotebookNode:
    notebook = solution()
    change(notebook.cells)
    return notebook


def _set(number: int, text: str):
    def change(cells):
        cells[number].source = text

    return change


def _replace(number: int, old: str, new: str):
    def change(cells):
        assert old in cells[number].source
        cells[number].source = cells[number].source.replace(old, new)

    return change


def _wrong_output(cells):
    cells[4].outputs[0].text = "flatten_deltas: not written yet\n"


def _not_run(cells):
    cells[4].execution_count = None


def _twice(cells):
    cells.insert(5, nbformat.from_dict({**cells[4], "id": "again"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace(3, "### END SOLUTION", ""), "cell 4: ### BEGIN SOLUTION without ### END SOLUTION"),
        (_replace(3, "### BEGIN SOLUTION", "### BEGIN SOLUTION\n    ### BEGIN SOLUTION"), "out of place"),
        (_replace(3, "how many a cell", "how many"), "but the stub of flatten_deltas"),
        (_replace(3, "def flatten_deltas", "def flatten"), "cell 4 must define one exercise of this chapter"),
        (_replace(3, "    return", "   return"), "cell 4 is not Python"),
        (_replace(2, "10 minutes", "20 minutes"), "above flatten_deltas this line must stand"),
        (_set(4, "check('flatten_deltas', flatten_deltas)"), "is not what comes next"),
        (lambda cells: cells.pop(), None),
        (lambda cells: cells.pop(13), "the exercise recall is not answered and checked"),
        (_twice, "is not what comes next"),
        (_wrong_output, "the stored output of the check is 'flatten_deltas: not written yet"),
        (_not_run, "Run the notebook"),
    ],
)  # fmt: skip
def test_a_solution_that_is_not_as_it_should_be(course, change, message):
    path = write_solution(course[0], edited(change))
    before = path.read_bytes()
    if message is None:
        assert build(*course)
        return
    with pytest.raises(UserError, match=message) as raised:
        build(*course)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before and not course[1].exists()


def test_folders_that_are_not_as_they_should_be(course, tmp_path):
    with pytest.raises(UserError, match="holds no solution notebook"):
        build(tmp_path / "nowhere", course[1])
    build(*course)
    (course[1] / "05_old.ipynb").write_text("{}")
    with pytest.raises(UserError, match=r"holds 05_old.ipynb, without a solution"):
        build(*course)
    (course[1] / "05_old.ipynb").unlink()
    (course[0] / "04_rpn.ipynb").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a notebook"):
        build(*course)


def test_cleared_keeps_the_indentation():
    text = "def f(x):\n    if x:\n        {}\n        {}\n{}    return 2"
    wanted = text.format("# YOUR CODE HERE", "raise NotImplementedError()", "")
    assert cleared(text.format(BEGIN, "return 1", f"        {END}\n"), "") == wanted


def test_the_courses_own_exercises_are_up_to_date():
    if not any(building.SOLUTIONS.glob("*.ipynb")):
        pytest.skip("there are no solution notebooks yet")
    assert build(check=True) == []


# ---------------------------------------------------------------- what others make of them


def code_numbers(path: Path, ids: list[str]) -> list[int]:
    cells = [cell.id for cell in read(path).cells if cell.cell_type == "code"]
    return sorted(cells.index(i) for i in ids)


@pytest.mark.slow
def test_nbval_fails_at_the_checks_of_what_is_not_solved(course, tmp_path):
    build(*course)
    solved, exercise, half = course[0] / "04_rpn.ipynb", course[1] / "04_rpn.ipynb", tmp_path / "half.ipynb"
    notebook = read(exercise)
    for cell in notebook.cells:
        if cell.id == "nms":
            cell.source = f"{all_exercises()['nms'].stub}\n{ANSWERS['nms']}"
    nbformat.write(notebook, half)
    (tmp_path / "solved").mkdir()
    with ThreadPoolExecutor(2) as pool:
        all_stubs = pool.submit(run_nbval, exercise, tmp_path, lax=True)
        one_solved = pool.submit(run_nbval, half, tmp_path, lax=True)
        all_solved = pool.submit(run_nbval, solved, tmp_path / "solved")
    checks = [f"{name}-check" for name in NAMES]
    assert all_stubs.result().failed == code_numbers(exercise, checks)
    checks.remove("nms-check")
    assert one_solved.result().failed == code_numbers(half, checks)
    assert all_solved.result().failed == []


NBGRADER = os.environ.get("MINIMRCNN_NBGRADER") or shutil.which("nbgrader")


@pytest.mark.slow
@pytest.mark.skipif(not NBGRADER, reason="no nbgrader: install it, or set MINIMRCNN_NBGRADER to its command")
def test_nbgrader_takes_the_same_files(course, tmp_path):
    build(*course)
    ours = tmp_path / "exercises" / "04_rpn.ipynb"
    patient = (
        "c = get_config()\nc.Execute.timeout = c.Execute.iopub_timeout = c.Execute.startup_timeout = 300\n"
    )
    (tmp_path / "nbgrader_config.py").write_text(patient)

    def nbgrader(*words: str) -> None:
        packages = str(Path(building.__file__).parents[2])
        path = f"{Path(NBGRADER).parent}{os.pathsep}{os.environ['PATH']}"  # it calls alembic by name
        environment = os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1", "PATH": path}
        done = subprocess.run(
            [NBGRADER, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]

    for folder in ("source/rpn", "submitted/solved/rpn", "submitted/nothing/rpn", "submitted/cheat/rpn"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(course[0] / "04_rpn.ipynb", tmp_path / "source" / "rpn")
    nbgrader("generate_assignment", "rpn")
    released = read(tmp_path / "release" / "rpn" / "04_rpn.ipynb")
    assert [(c.id, c.source) for c in released.cells] == [(c.id, c.source) for c in read(ours).cells]

    shutil.copy(course[0] / "04_rpn.ipynb", tmp_path / "submitted" / "solved" / "rpn")
    shutil.copy(ours, tmp_path / "submitted" / "nothing" / "rpn")
    notebook = read(ours)
    for cell in notebook.cells:
        if cell.id == "nms":
            cell.source = f"{all_exercises()['nms'].stub}\n{ANSWERS['nms']}"
        if cell.id == "recall-check":
            cell.source = 'print("recall: ok")'
    nbformat.write(notebook, tmp_path / "submitted" / "cheat" / "rpn" / "04_rpn.ipynb")
    nbgrader("autograde", "rpn")
    nbgrader("export")
    rows = csv.DictReader((tmp_path / "grades.csv").read_text().splitlines())
    scores = {row["student_id"]: float(row["score"]) for row in rows}
    assert scores == {
        "solved": sum(e.difficulty for e in of_chapter(4)),
        "nothing": 0,
        "cheat": all_exercises()["nms"].difficulty,
    }
