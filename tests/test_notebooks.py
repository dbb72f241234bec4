"""The course as it ships: every notebook runs, prints what it printed, and tells no lies in its text.

pytest -m "not notebooks"        everything but the running of whole notebooks: the quick loop
pytest tests/test_notebooks.py -k 03    all about notebook 03
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import notebook_rules as rules
import pytest
from nbformat import NotebookNode
from nbval_run import Outcome, run_nbval
from notebook_rules import ROOT

from minimrcnn.classroom.submissions import is_check

CHAPTERS = (
    *("00_tour", "01_instances_and_coco", "02_backbone_and_fpn", "03_anchors_and_matching", "04_rpn"),
    *("05_roipool_vs_roialign", "06_triton_roialign", "07_box_head", "08_mask_head", "09_three_term_loss"),
    *("10_inference_and_pasting", "11_coco_evaluation", "15_full_coco"),
)
BUDGET, BUDGET_OF_ALL = 120, 600  # seconds on 2 cores without a GPU


def _course(folder: str, expected: tuple[str, ...]) -> list[Path]:
    """The notebooks that there should be and those that there are."""
    there = {path.stem for path in (ROOT / folder).glob("*.ipynb")}
    return [ROOT / folder / f"{name}.ipynb" for name in sorted({*expected, *there})]


NOTEBOOKS = _course("notebooks", CHAPTERS)
SOLUTIONS = _course("solutions", CHAPTERS[1:12])
EXERCISES = _course("exercises", CHAPTERS[1:12])


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def _read(path: Path) -> NotebookNode:
    if not path.exists():
        pytest.skip(f"{_name(path)}.ipynb is not written yet")
    return nbformat.read(path, as_version=4)


def _expect_none(problems: list[str]) -> None:
    """All of them in the report, one a line."""
    assert not problems, "\n" + "\n".join(problems)


every = pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS, *EXERCISES], ids=_name)
executed = pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS], ids=_name)
exercises = pytest.mark.parametrize("path", EXERCISES, ids=_name)


# ---------------------------------------------------------------- without running


@every
def test_is_a_tidy_notebook(path: Path) -> None:
    _expect_none(rules.form_problems(_read(path)))


@every
def test_links_lead_somewhere(path: Path) -> None:
    _expect_none(rules.link_problems(path, _read(path)))


@every
def test_names_in_the_text_exist(path: Path) -> None:
    _expect_none(rules.name_problems(path, _read(path)))


@executed
def test_was_run_in_order_without_a_warning(path: Path) -> None:
    notebook = _read(path)
    _expect_none(rules.order_problems(notebook) + rules.output_problems(notebook))


@executed
def test_figures_are_told_in_words_and_numbers(path: Path) -> None:
    _expect_none(rules.figure_problems(_read(path)))


@executed
def test_shows_the_package_as_it_is(path: Path) -> None:
    _expect_none(rules.source_problems(_read(path)))


@exercises
def test_checks_carry_the_output_of_the_solution(path: Path) -> None:
    checks = [
        cell for cell in rules.code_cells(_read(path)) if cell.metadata.get("nbgrader", {}).get("grade")
    ]
    assert checks
    for cell in checks:
        assert rules.has_tag(cell, "nbval-check-output"), cell.id
        assert cell.execution_count is not None, f"{cell.id}: nbval compares no cell without a count"
        name = re.search(r'check\("(\w+)"', cell.source)[1]
        assert [output.text for output in cell.outputs] == [f"{name}: ok\n"], cell.id


# ---------------------------------------------------------------- the table of times in the README


def read_times(text: str) -> dict[str, float]:
    """{"notebooks/00_tour": seconds} from the README's rows "| 00_tour | 21 | – |".

    The first number is the notebook's, the second the solution's.
    """
    times = {}
    for name, *columns in re.findall(
        r"^\|\s*\[?`?(\d\d_\w+)[^|]*\|\s*([^|]*?)\s*\|\s*([^|]*?)\s*\|", text, re.MULTILINE
    ):
        for folder, column in zip(("notebooks", "solutions"), columns, strict=True):
            if re.fullmatch(r"\d+(\.\d+)?", column):
                times[f"{folder}/{name}"] = float(column)
    return times


def test_the_table_of_times_keeps_the_budget() -> None:
    there = [_name(path) for path in (*NOTEBOOKS, *SOLUTIONS) if path.exists()]
    if not there:
        pytest.skip("there are no notebooks yet")
    times = read_times((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [name for name in there if name not in times] == [], "no row in the README's table of times"
    assert [name for name in times if name not in there] == [], "the README times what is not there"
    assert {name: seconds for name, seconds in times.items() if seconds > BUDGET} == {}
    assert sum(times.values()) <= BUDGET_OF_ALL


def test_reading_the_table_of_times() -> None:
    text = (
        "| notebook | seconds | solution |\n|---|---|---|\n| 00_tour | 21 | – |\n| [01_x](y) | 12.5 | 130 |\n"
    )
    assert read_times(text) == {"notebooks/00_tour": 21, "notebooks/01_x": 12.5, "solutions/01_x": 130}


# ---------------------------------------------------------------- run


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_a_chapter_prints_what_it_printed(path: Path, tmp_path: Path) -> None:
    _expect_same(path, run_nbval(path, tmp_path))


@pytest.fixture(scope="session")
def short_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Path to the future of its outcome. Solutions and exercises mostly start up: two run at a time."""
    chosen = {i.callspec.params["path"] for i in request.session.items if "short_runs" in i.fixturenames}
    with ThreadPoolExecutor(2) as pool:
        yield {
            path: pool.submit(run_nbval, path, tmp_path_factory.mktemp(path.stem), lax=path in EXERCISES)
            for path in (*SOLUTIONS, *EXERCISES)
            if path in chosen
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", SOLUTIONS, ids=_name)
def test_a_solution_prints_what_it_printed(path: Path, short_runs: dict) -> None:
    _expect_same(path, short_runs[path].result())


@pytest.mark.notebooks
@exercises
def test_an_exercise_as_shipped_fails_at_its_checks_alone(path: Path, short_runs: dict) -> None:
    cells = rules.code_cells(_read(path))
    outcome = short_runs[path].result()
    checks = [i for i, cell in enumerate(cells) if is_check(cell)]
    assert outcome.failed == checks, outcome.report
    assert outcome.cells == len(cells)


def _expect_same(path: Path, outcome: Outcome) -> None:
    assert outcome.failed == [], outcome.report
    assert outcome.cells == len(rules.code_cells(_read(path)))
