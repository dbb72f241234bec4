"""The pages: linked, readable without a script and without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from classroom_notebooks import hand_in
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minimrcnn.classroom.site import build_site, take_out_math
from minimrcnn.errors import UserError

TEXT = r"""
# 00 The `tour`

An average, $\frac{x_1 + x_2}{2}$, costs $5 or \$6; `$code$` stays. See [boxes](../minimrcnn/boxes.py),
[the next](01_next.ipynb#Second), [web](https://arxiv.org/abs/1703.06870), [gone](nowhere.ipynb).

$$\hat{t} = \begin{aligned} a &= b * c \\ d &= e_i^* \end{aligned}$$

<details><summary>Answer</summary>

Because **it** is $\sigma$.

</details>

![A sheet of toys](../data/sheet.png)
"""


class _Page(HTMLParser):
    """What a page refers to, and what is inside its <details>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.folded = ""
        self.alt: list[str] = []
        self.open_details = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open_details += tag == "details"
        for name, value in attrs:
            if name == "alt":
                self.alt.append(value or "")
            if name in ("src", "href"):
                (self.links if tag == "a" else self.loaded).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self.open_details -= tag == "details"

    def handle_data(self, data: str) -> None:
        self.folded += data if self.open_details else ""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small course, and its site in site/."""
    root = tmp_path_factory.mktemp("course")
    code = new_code_cell("draw()", execution_count=1)
    data = {"image/png": "iVBORw0KGgo=", "text/plain": "3 toys"}
    alt = {"image/png": {"alt": 'Three "toys" in a row'}}
    code.outputs = [new_output("display_data", data=data, metadata=alt)]
    drawing = new_code_cell("figure = drawn()", metadata={"jupyter": {"source_hidden": True}})
    cells = [new_markdown_cell(TEXT), code, drawing]
    hand_in(root / "notebooks", new_notebook(cells=cells), "00_tour.ipynb")
    second = new_notebook(cells=[new_markdown_cell("# 01 Next\n\n## Second\n\n[back](00_tour.ipynb)")])
    hand_in(root / "notebooks", second, "01_next.ipynb")
    about = "# Exercises 01: `iou`\n\nThe exercises want $IoU$."
    answer = "def iou(a, b):\n    ### BEGIN SOLUTION\n    return a / b\n    ### END SOLUTION"
    check = new_code_cell('check("iou", iou)', execution_count=2)
    check.outputs = [new_output("stream", name="stdout", text="iou: ok\n")]
    for folder, source in (("solutions", answer), ("exercises", "def iou(a, b): ...")):
        cells = [new_markdown_cell(about), new_code_cell(source), check]
        hand_in(root / folder, new_notebook(cells=cells), "01_next.ipynb")
    for name, text in (("minimrcnn/boxes.py", "def iou(a, b): ...\n"), ("data/sheet.png", "png")):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    build_site(root / "site", root)
    return root


def test_every_link_leads_to_a_page(root: Path) -> None:
    pages = sorted((root / "site").rglob("*.html"))
    assert len(pages) == 6
    for path in pages:
        page = _Page(path)
        for link in page.links + page.loaded:
            if not link.startswith(("https://arxiv", "data:")) and link != "nowhere.ipynb":
                assert (path.parent / link.partition("#")[0]).exists(), (path.name, link)


def test_links_keep_their_place_in_the_page(root: Path) -> None:
    links = _Page(root / "site/notebooks/00_tour.html").links
    assert "01_next.html#Second" in links
    assert 'id="Second"' in (root / "site/notebooks/01_next.html").read_text(encoding="utf-8")
    assert "../minimrcnn/boxes.py.html" in links


def test_nothing_is_loaded_from_elsewhere(root: Path) -> None:
    for path in (root / "site").rglob("*.html"):
        page = _Page(path)
        assert "script" not in page.tags
        assert "link" not in page.tags
        assert not [url for url in page.loaded if url.startswith(("http", "//"))]
        assert "@import" not in path.read_text(encoding="utf-8")


def test_formulas_are_drawn_by_the_browser(root: Path) -> None:
    text = (root / "site/notebooks/00_tour.html").read_text(encoding="utf-8")
    assert text.count("<math") == 3
    assert "<mfrac>" in text
    assert "FORMULA" not in text
    assert "<mi>&</mi>" not in text  # of an alignment that was not understood
    assert "<code>$code$</code>" in text


def test_answers_are_folded_and_pictures_have_words(root: Path) -> None:
    page = _Page(root / "site/notebooks/00_tour.html")
    assert "Because" in page.folded
    assert page.alt == ["A sheet of toys", 'Three "toys" in a row']


def test_code_that_jupyter_folds_is_folded(root: Path) -> None:
    page = _Page(root / "site/notebooks/00_tour.html")
    assert "drawn" in page.folded
    assert "draw()" not in page.folded
    assert page.open_details == 0


def test_the_contents_name_every_notebook(root: Path) -> None:
    text = (root / "site/index.html").read_text(encoding="utf-8")
    assert re.findall(r"<a href='(\w+/\w+\.html)'>([^<]*)", text) == [
        ("notebooks/00_tour.html", "00 The tour"),
        ("notebooks/01_next.html", "01 Next"),
        ("exercises/01_next.html", "Exercises"),
        ("solutions/01_next.html", "Solutions"),
    ]
    assert re.findall(r"<th>(\w+)", text) == ["Chapter", "Exercises", "Solutions"]


def test_an_exercise_shows_no_output_and_a_solution_its_own(root: Path) -> None:
    exercise = (root / "site/exercises/01_next.html").read_text(encoding="utf-8")
    solution = (root / "site/solutions/01_next.html").read_text(encoding="utf-8")
    assert "iou: ok" not in exercise
    assert "iou: ok" in solution
    assert "check" in exercise


def test_a_solution_calls_itself_so_and_has_no_marks(root: Path) -> None:
    exercise = (root / "site/exercises/01_next.html").read_text(encoding="utf-8")
    solution = (root / "site/solutions/01_next.html").read_text(encoding="utf-8")
    assert "<title>Exercises 01: iou</title>" in exercise
    assert "<title>Solutions 01: iou</title>" in solution
    assert "Solutions 01: <code>iou</code>" in solution
    assert "The exercises want" in solution  # only the heading is changed
    assert "SOLUTION" not in solution
    assert "return" in solution


def test_the_head_leads_to_the_neighbours_and_to_what_belongs_together(root: Path) -> None:
    links = {
        "notebooks/00_tour": [("../notebooks/01_next.html", "01 Next →")],
        "notebooks/01_next": [
            ("../notebooks/00_tour.html", "← 00 The tour"),
            ("../exercises/01_next.html", "Exercises"),
            ("../solutions/01_next.html", "Solutions"),
        ],
        "exercises/01_next": [
            ("../notebooks/01_next.html", "Chapter"),
            ("../solutions/01_next.html", "Solutions"),
        ],
    }
    for page, wanted in links.items():
        head = re.search(r"<nav>(.*)</nav>", (root / f"site/{page}.html").read_text(encoding="utf-8"))
        assert re.findall(r"<a href='([^']*)'>([^<]*)", head[1])[1:] == wanted, page


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("from $5 to $6", 0),
        ("$a$ and $b$", 2),
        ("$$a\n+ b$$", 1),
        ("```\n$a$\n```", 0),
        (r"\$a$", 0),
        ("$a_1$, $b^2$.", 2),
        ("`$a$` and $b$", 1),
    ],
)
def test_what_is_a_formula(text: str, formulas: int) -> None:
    assert len(take_out_math(new_notebook(cells=[new_markdown_cell(text)]))) == formulas


def test_what_it_does_not_know_stays_latex() -> None:
    formulas = take_out_math(new_notebook(cells=[new_markdown_cell(r"$\frac{<a}$")]))
    assert all("<a" not in shown for shown in formulas.values())


def test_other_peoples_folders_are_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="not this site"):
        build_site(tmp_path, root)
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_no_notebooks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no notebooks"):
        build_site(tmp_path / "site", tmp_path)
