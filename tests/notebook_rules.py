"""What must hold for every notebook that ships: each rule is a function that lists what is wrong.

test_notebooks.py applies the rules to the course, test_notebook_rules.py to notebooks with planted faults.
"""

from __future__ import annotations

import ast
import base64
import builtins
import functools
import html
import importlib
import re
import struct
from pathlib import Path

import nbformat
import numpy as np
import torch
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 900  # pixels: what a notebook's page shows without scaling
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
# What another machine or another run would print differently.
OF_THIS_MACHINE = re.compile(r"/home/|/root/|/tmp/|/work/|/Users/|site-packages|[A-Z]:\\|at 0x[0-9a-f]{6,}")
WIDGET = "application/vnd.jupyter.widget-view+json"
TEXT_FILES = ("py", "ipynb", "md", "toml", "txt", "cfg")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """In order: nbval's "Cell 3" is number 3 of these, counted from 0."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


# ---------------------------------------------------------------- the file


def form_problems(notebook: NotebookNode) -> list[str]:
    """Valid, with cell ids, for the kernel python3, and without what changes from run to run."""
    problems = []
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        problems.append("format before 4.5: cells have no ids")
    ids = [cell.get("id", "") for cell in notebook.cells]
    problems += [f"cell id {i!r} occurs twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    if not problems:  # nbformat repairs these two as it reads, and only warns
        try:
            nbformat.validate(notebook)
        except nbformat.ValidationError as error:
            problems.append(f"not valid: {str(error).splitlines()[0]}")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        problems.append("the kernel is not named python3")
    if "version" in notebook.metadata.get("language_info", {}) or "widgets" in notebook.metadata:
        problems.append("the metadata name a Python version or hold widgets: run classroom.execute")
    problems += [
        f"cell {cell.get('id')} holds timestamps" for cell in notebook.cells if "execution" in cell.metadata
    ]
    return problems


def order_problems(notebook: NotebookNode) -> list[str]:
    """Every code cell was run, in order, on a fresh kernel."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def output_problems(notebook: NotebookNode) -> list[str]:
    """No warning, no unexpected error, nothing of this machine."""
    problems = []
    for cell in code_cells(notebook):
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if has_tag(cell, "raises-exception") and not errors:  # which nbval lets pass
            problems.append(f"cell {cell.id} is tagged raises-exception and raises nothing")
        for output in cell.outputs:
            if output.output_type == "error" and not has_tag(cell, "raises-exception"):
                problems.append(f"cell {cell.id} ends with {output.ename}")
            if output.get("name") == "stderr":
                problems.append(f"cell {cell.id} writes on stderr: {output.text.strip()[:80]!r}")
            for kind, text in texts(output).items():
                found = OF_THIS_MACHINE.search(text)
                if found:
                    problems.append(f"cell {cell.id} prints {text[found.start() :][:40]!r} ({kind})")
                if kind == "text/plain" and re.match(r"\[?<(Figure|Axes|matplotlib)", text):
                    problems.append(f"cell {cell.id} prints {text[:40]!r}")
            if WIDGET in output.get("data", {}):
                problems.append(f"cell {cell.id} holds a widget, which no page can show")
    return problems


def texts(output: NotebookNode) -> dict[str, str]:
    """The texts of one output, by what they are."""
    if output.output_type == "stream":
        return {output.name: output.text}
    data = output.get("data", {})
    return {kind: data[kind] for kind in ("text/plain", "text/html", "text/markdown") if kind in data}


def figure_problems(notebook: NotebookNode) -> list[str]:
    """Each picture has words for who cannot see it, fits the page, and has a line of numbers under it."""
    problems = []
    for cell in code_cells(notebook):
        pictures = [o for o in cell.outputs if any(kind in o.get("data", {}) for kind in PICTURES)]
        for output in pictures:
            for kind in PICTURES:
                if kind in output.data:
                    problems += _picture_problems(cell.id, kind, output)
        if pictures and not re.search(r"\d", _said_under(pictures[-1], cell)):
            problems.append(f"cell {cell.id}: no line of numbers under the figure")
    return problems


def _said_under(picture: NotebookNode, cell: NotebookNode) -> str:
    """What a reader sees below a picture; its own text/plain is what Jupyter does not show."""
    below = cell.outputs[cell.outputs.index(picture) + 1 :]
    return "".join(texts(output).get(kind, "") for output in below for kind in ("stdout", "text/plain"))


def _picture_problems(cell: str, kind: str, output: NotebookNode) -> list[str]:
    about = output.metadata.get(kind, {})
    problems = []
    if len(about.get("alt", "")) < 20:
        problems.append(f"cell {cell}: a figure without alt text")
    width = about.get("width")
    if width is None and kind == "image/png":
        width = struct.unpack(">I", base64.b64decode(output.data[kind])[16:20])[0]
    if width and int(width) > WIDTH:
        problems.append(f"cell {cell}: a figure {width} pixels wide, more than {WIDTH}")
    return problems


def source_problems(notebook: NotebookNode) -> list[str]:
    """What show_source put into the notebook is the package's code of today."""
    from minimrcnn.show.source import source

    problems = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            options = output.get("metadata", {}).get("minimrcnn")
            if options is None:
                continue
            place = output.data["text/plain"]
            try:
                lines = tuple(options["lines"]) if options["lines"] else None
                today = source(_at(place), docstring=options["docstring"], lines=lines).code
            except (AttributeError, ImportError, ValueError) as error:
                problems.append(f"cell {cell.id}: {place} is not there any more ({error})")
                continue
            shown = html.unescape(re.sub(r"<[^>]*>", "", output.data["text/html"].partition("</b>")[2]))
            if _words(shown) != _words(today):
                problems.append(
                    f"cell {cell.id} shows an older {place}: run classroom.execute on the notebook"
                )
    return problems


def _at(place: str) -> object:
    """The function or class of "minimrcnn/boxes.py: iou"."""
    file, _, name = place.partition(": ")
    module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    return functools.reduce(getattr, name.split("."), module)


def _words(code: str) -> list[str]:
    return code.split()


# ---------------------------------------------------------------- the text


def prose(notebook: NotebookNode) -> str:
    """All markdown, without fenced code and without comments."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"^(```|~~~).*?^\1[^\n]*$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)


def link_problems(path: Path, notebook: NotebookNode) -> list[str]:
    """Each link inside the project leads somewhere; each picture in the text has alt text."""
    problems = []
    text = prose(notebook)
    links = re.findall(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    links += [("", "", target) for target in re.findall(r"<a\s[^>]*href=[\"']([^\"']+)", text)]
    for picture, words, target in links:
        if picture and len(words) < 20:
            problems.append(f"the picture {target} has no alt text")
        if re.match(r"https?://|mailto:|attachment:|data:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if there != path and not there.exists():
            problems.append(f"the link {target} leads nowhere")
        elif anchor and there.suffix == ".ipynb":
            other = notebook if there == path else nbformat.read(there, as_version=4)
            if anchor not in anchors(other):
                problems.append(f"the link {target}: there is no such heading")
    return problems


def anchors(notebook: NotebookNode) -> set[str]:
    """The targets that Jupyter makes of headings."""
    headings = re.findall(r"^#+\s+(.*?)\s*#*$", prose(notebook), flags=re.MULTILINE)
    return {re.sub(r"[`*]", "", heading).replace(" ", "-") for heading in headings}


def name_problems(path: Path, notebook: NotebookNode) -> list[str]:
    """Each file and function that the text names in `code` exists."""
    own = own_names(notebook)
    problems = []
    for quoted in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(notebook)):
        wrong = _name_problem(path, quoted.strip(), own)
        if wrong:
            problems.append(f"`{quoted}`: {wrong}")
    return problems


def _name_problem(path: Path, quoted: str, own: set[str]) -> str:
    extensions = "|".join(TEXT_FILES)
    file = re.fullmatch(rf"([\w./-]+\.(?:{extensions}))(?::\s*(?:L?\d+|([\w.]+)(?:\(.*\))?))?", quoted)
    if file:
        return _file_problem(path, file[1], file[2])
    if re.fullmatch(r"(minimrcnn|notebooks|exercises|solutions|tests|benchmarks|data)/[\w./-]*", quoted):
        return "" if (ROOT / quoted).exists() else "no such place in the project"
    called = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", quoted)
    if not called or re.search(r"\.(json|jsonl|pt|png|jpg|csv|html)$", quoted):
        return ""
    parts = called[1].split(".")
    if parts[0] == "minimrcnn" or (len(parts) > 1 and parts[0] in modules() and parts[0] not in own):
        dotted = called[1] if parts[0] == "minimrcnn" else f"{modules()[parts[0]]}.{'.'.join(parts[1:])}"
        return "" if _resolves(dotted) else "no such name in the package"
    if called[2] and len(parts) == 1:
        return (
            "" if parts[0] in own | package_names() | LIBRARY else "no such function here or in the package"
        )
    return ""


def _file_problem(path: Path, name: str, inside: str | None) -> str:
    homes = (path.parent, ROOT, ROOT / "minimrcnn")
    found = [home / name for home in homes if (home / name).is_file()]
    if not found and "/" not in name:
        found = [p for p in package_files() if p.name == name]
    if not found:
        return "no such file in the project"
    if inside and found[0].suffix == ".py":
        defined = set().union(*(names_in(file) for file in found))
        if not set(inside.split(".")) <= defined:
            return f"{name} defines no {inside}"
    return ""


def own_names(notebook: NotebookNode) -> set[str]:
    """Every name that a notebook's code binds, reads or calls."""
    names = set()
    for cell in code_cells(notebook):
        names |= set(re.findall(r"[A-Za-z_]\w*", cell.source))
    return names


@functools.cache
def package_files() -> tuple[Path, ...]:
    folders = ("minimrcnn", "tests", "benchmarks")
    return tuple(sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")))


@functools.cache
def modules() -> dict[str, str]:
    """ "boxes" -> "minimrcnn.boxes", "align" -> "minimrcnn.roi_ops.align"."""
    found = {}
    for path in package_files():
        if path.is_relative_to(ROOT / "minimrcnn") and path.name != "__main__.py":
            dotted = (
                path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
            )
            found.setdefault(dotted.rpartition(".")[2], dotted)
    return found


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """What a file defines: functions, methods, classes, fields, constants."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return frozenset(names)


@functools.cache
def package_names() -> frozenset[str]:
    return frozenset().union(*(names_in(path) for path in package_files()))


LIBRARY = frozenset({*dir(builtins), *dir(torch), *dir(torch.Tensor), *dir(torch.nn.functional), *dir(np)})


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for i, part in enumerate(parts[split:], split):
            if not hasattr(found, part):
                # A field of a dataclass, or an attribute that only instances have.
                return i > split and part in package_names()
            found = getattr(found, part)
        return True
    return False
