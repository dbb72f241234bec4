"""The course as pages to read without Jupyter: make site

Notebooks, exercises and solutions become linked HTML pages, as they are stored (nothing is run); exercises
without outputs, for these are the solutions'. A page needs no script and no network: pictures are inside it,
formulas are MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from html import escape, unescape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from tqdm import tqdm

from minimrcnn.classroom.building import BEGIN, END
from minimrcnn.classroom.kernel import ROOT
from minimrcnn.errors import UserError

FOLDERS = {"notebooks": "Chapter", "exercises": "Exercises", "solutions": "Solutions"}
TITLE = "Mask R-CNN, step by step"
WELCOME = """The course to read. Each chapter has exercises, and solutions to compare yours with afterwards.
Nothing is run on these pages: to run a chapter, or to write an exercise, open its notebook in Jupyter."""
CODE = HtmlFormatter(style="vs")
# A cell whose code is folded in JupyterLab (the drawing of a figure) is folded here too.
TEMPLATE = """
{%- extends "basic/index.html.j2" -%}
{% block input %}
{%- if cell.metadata.get("jupyter", {}).get("source_hidden") -%}
<details class="folded"><summary>The code of this cell</summary>
{{ super() }}
</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{% endblock input %}
"""
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; max-width: 900px; margin: 0 auto; padding: 1em }
nav { display: flex; flex-wrap: wrap; gap: 0 1.5em; padding: .4em 0 }
nav { border-bottom: 1px solid #c8c8c8; margin-bottom: 1.5em }
img, svg { max-width: 100%; height: auto }
pre { --paper: #f5f6f7; background: var(--paper); padding: 8px 12px; font-size: 12.6px; line-height: 1.45 }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
.output pre { --paper: #fff; border-left: 3px solid #56B4E9; margin: 6px 0 }
.output_stderr pre { border-left-color: #D55E00 }
.output .minimrcnn-source pre { border: 0; padding: 4px 0 }
.folded pre { --paper: #eef2f5; padding: 8px 0 }
.prompt, .anchor-link { display: none }
table { border-collapse: collapse; font-size: 15px } th, td { border: 1px solid #c8c8c8; padding: 3px 9px }
details { background: #eef2f5; padding: 6px 12px; margin: .5em 0 } summary { cursor: pointer }
math { font-size: 1.08em } math[display=block] { margin: .8em 0; overflow-x: auto }
/* Without a font for formulas a browser hardly lowers an index. */
msub > :nth-child(2), msubsup > :nth-child(2) { position: relative; top: .2em }
a { color: #005a8d } :not(pre) > code { overflow-wrap: anywhere }
/* A wrapped line of code is hard to read in a narrow column: scroll, with a shadow where more is to come. */
@media screen and (max-width: 700px) {
  ul, ol { padding-left: 1.4em } p { overflow-x: auto }
  pre { white-space: pre; overflow-x: auto; --end: 100% 0 / 24px 100% no-repeat;
    background: linear-gradient(90deg, #fff0, var(--paper)) var(--end) local,
      linear-gradient(90deg, #fff0, #0004) var(--end) scroll, var(--paper) }
  table { display: block; overflow-x: auto }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt } nav { display: none }
  pre { white-space: pre-wrap; font-size: 8pt }
  img, svg, tr { break-inside: avoid } h2, h3 { break-after: avoid }
}
""" + CODE.get_style_defs(".highlight")
MATH = re.compile(
    r"(?P<code>^(?P<fence>```|~~~).*?^(?P=fence)|`+[^`]+`+)"  # not looked into
    r"|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?!\s)(?P<inline>[^$\n]+?)(?<![\s\\])\$(?!\d)"
    r"|(?P<dollar>\\?\$)",
    re.DOTALL | re.MULTILINE,
)
TOKEN = re.compile(r"FORMULA\d{5}X")


def main(arguments: list[str] | None = None) -> int:
    """Build the pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m minimrcnn.classroom.site", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="DIR", help="default: site")
    args = parser.parse_args(arguments)
    try:
        pages = build_site(args.out)
    except UserError as error:
        print(f"minimrcnn: {error}", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages. Next, open\n  {args.out / 'index.html'}")
    return 0


def build_site(out: Path, root: Path = ROOT) -> list[Path]:
    """Write the pages of all notebooks under root into out, which is replaced as a whole.

    Returns the pages.
    Raises UserError if there are no notebooks, if one is damaged, or if out holds something else.
    """
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.ipynb"))]
    if not paths:
        raise UserError(f"{root} has no notebooks in {', '.join(FOLDERS)}: there is nothing to show.")
    if out.exists() and not (out / "index.html").exists() and any(out.iterdir()):
        raise UserError(f"{out} holds something that is not this site. Choose another folder with --out.")
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        site = _Site(root, fresh, {path: as_shown(_read(path), path.parent.name) for path in paths})
        for path in tqdm(paths, desc="pages", disable=None):
            site.add_notebook(path)
        site.add_index()
        shutil.rmtree(out, ignore_errors=True)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sorted(out.rglob("*.html"))


class _Site:
    """Pages under way, and the files that they link to."""

    def __init__(self, root: Path, out: Path, notebooks: dict[Path, NotebookNode]) -> None:
        self.root = root
        self.out = out
        self.notebooks = notebooks
        self.titles = {path: title_of(notebook) or path.stem for path, notebook in notebooks.items()}
        # Not embed_images: it takes raw HTML apart block by block, and a <details> would end where it begins.
        self.exporter = HTMLExporter(template_name="basic", raw_template=TEMPLATE)

    def add_notebook(self, path: Path) -> None:
        notebook = self.notebooks[path]
        formulas = take_out_math(notebook)
        resources = {"metadata": {"path": str(path.parent), "name": path.stem}}
        body, _ = self.exporter.from_notebook_node(notebook, resources)
        body = re.sub(r'(?:id|href)="[^"]*"', lambda match: TOKEN.sub("", match[0]), body)  # of headings
        body = TOKEN.sub(lambda match: formulas[match[0]], body)
        page = path.relative_to(self.root).with_suffix(".html")
        self._write(page, self._linked(body, path), self.titles[path], self._beside(path))

    def add_index(self) -> None:
        """The table of contents."""
        rows = []
        for name in sorted({path.name for path in self.notebooks}):
            cells = []
            for folder, words in FOLDERS.items():
                path = self.root / folder / name
                shown = self.titles.get(path, "") if folder == "notebooks" else words
                link = f"<a href='{folder}/{escape(path.stem)}.html'>{escape(shown)}</a>"
                cells.append(f"<td>{link if path in self.notebooks else ''}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        heads = "".join(f"<th>{words}</th>" for words in FOLDERS.values())
        table = f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
        self._write(Path("index.html"), f"<h1>{TITLE}</h1><p>{WELCOME}</p>{table}", TITLE)

    def _beside(self, path: Path) -> str:
        """Links to the notebooks before and after this one in its folder, and to its chapter's others."""
        here = [other for other in self.notebooks if other.parent == path.parent]
        place = here.index(path)
        links = [(f"← {self.titles[other]}", other) for other in here[max(place - 1, 0) : place]]
        links += [(f"{self.titles[other]} →", other) for other in here[place + 1 : place + 2]]
        others = [(words, self.root / folder / path.name) for folder, words in FOLDERS.items()]
        links += [(words, other) for words, other in others if other != path and other in self.notebooks]
        return "".join(
            f"<a href='../{other.parent.name}/{escape(other.stem)}.html'>{escape(text)}</a>"
            for text, other in links
        )

    def _linked(self, body: str, path: Path) -> str:
        """The body with links to files of the project led to their pages, which are written too.

        Pictures in the text are copied.
        """

        def lead(match: re.Match[str]) -> str:
            target, hash_, anchor = unescape(match[2]).partition("#")
            file = (path.parent / target).resolve()
            inside = (
                target and ":" not in target and file.is_relative_to(self.root.resolve()) and file.is_file()
            )
            if not inside:
                return match[0]
            page = target.removesuffix(".ipynb") + self._page_of(file)
            return f'{match[1]}"{escape(page + hash_ + anchor)}"'

        return re.sub(r'(<a [^>]*?href=|<img [^>]*?src=)"([^"]*)"', lead, body)

    def _page_of(self, file: Path) -> str:
        """What is put behind a link to a file; writes the page, or a copy, if it is not there yet."""
        name = file.relative_to(self.root.resolve())
        if file.suffix == ".ipynb":
            return ".html"
        if file.suffix not in (".py", ".md"):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.out / name)
            return ""
        page = name.with_name(f"{name.name}.html")
        if not (self.out / page).exists():
            text = file.read_text(encoding="utf-8")
            body = highlight(text, PythonLexer(), CODE) if file.suffix == ".py" else markdown2html(text)
            self._write(page, f"<h1>{escape(name.as_posix())}</h1>{body}", name.as_posix())
        return ".html"

    def _write(self, page: Path, body: str, title: str, beside: str = "") -> None:
        """page: relative to the site. beside: more links for its head."""
        place = self.out / page
        place.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(page.parts) - 1)
        place.write_text(
            f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
            "<meta name='viewport' content='width=device-width'>"
            f"<style>{STYLE}</style></head>\n<body><nav><a href='{up}index.html'>Contents</a>{beside}</nav>\n"
            f"{body}\n</body></html>\n",
            encoding="utf-8",
        )


def _read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a notebook: {error}") from error


def as_shown(notebook: NotebookNode, folder: str) -> NotebookNode:
    """A notebook of "notebooks", "exercises" or "solutions" changed, in place, to what a reader should see.

    An exercise stores the solution's `iou: ok`, for tests to compare with: its page shows no outputs. A
    solution is the file that the exercise is made of: its page says Solutions, and the marks are left out.
    """
    for cell in notebook.cells:
        if folder == "exercises" and cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if folder == "solutions" and cell.cell_type == "code":
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if line.strip() not in (BEGIN, END))
    if folder == "solutions" and notebook.cells and notebook.cells[0].cell_type == "markdown":
        first = notebook.cells[0]
        heading, *rest = first.source.split("\n", 1)
        heading = heading.replace("Exercises", "Solutions").replace("exercises", "solutions")
        first.source = "\n".join([heading, *rest])
    return notebook


def title_of(notebook: NotebookNode) -> str:
    """The first heading, without its number sign."""
    for cell in notebook.cells:
        found = cell.cell_type == "markdown" and re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
        if found:
            return re.sub(r"[`*]", "", found[1]).strip()
    return ""


def take_out_math(notebook: NotebookNode) -> dict[str, str]:
    """Replace the formulas in markdown cells by tokens, whose MathML is returned.

    Markdown would read their _ and * as its own.
    """
    formulas: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if match["dollar"]:
            return "&#36;"  # nbconvert would look for a formula from here on
        token = f"FORMULA{len(formulas):05d}X"  # which TOKEN finds again
        formulas[token] = _mathml(match["block"] or match["inline"], "block" if match["block"] else "inline")
        return token

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = MATH.sub(take, cell.source)
    return formulas


def _mathml(latex: str, display: str) -> str:
    try:
        # The same to the reader, and of the two names the one that latex2mathml knows.
        return convert(latex.strip().replace("{aligned}", "{split}"), display=display)
    except Exception:
        # Whatever it does not know is still readable as LaTeX; it has no common class for its errors.
        return f"<code>{escape(latex.strip())}</code>"


if __name__ == "__main__":
    sys.exit(main())
