"""The package's own code in a notebook, taken from the file, so that text and code cannot drift apart."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
STYLE = "vs"  # dark on white, and no two colours that only the green-red axis tells apart
FRAME = "background:#ffffff;color:#000000;border-left:3px solid #0072B2;padding:6px 12px;margin:4px 0"


class Source:
    """A piece of source code: coloured in Jupyter, and as text only its place.

    The text holds no line number and no code: nbval compares it, and a comment added further up in the
    file should not make every notebook fail. That the stored page shows today's code is a test of its own.

    Attributes:
        place: "minimrcnn/boxes.py: iou".
        code: the lines that are shown, not indented.
        options: the arguments of `source` besides the thing, kept in the output's metadata for that test.
    """

    def __init__(self, place: str, code: str, options: dict[str, object]) -> None:
        self.place = place
        self.code = code
        self.options = options

    def __repr__(self) -> str:
        return self.place

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        """Jupyter's protocol: the same thing in several forms, and what is known about it."""
        return {"text/plain": self.place, "text/html": self.html()}, {"minimrcnn": self.options}

    def html(self) -> str:
        """The code in colour, in a frame under its place; needs no style sheet."""
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        formatter = HtmlFormatter(style=STYLE, noclasses=True, nobackground=True)
        body = highlight(self.code, PythonLexer(), formatter)
        return f'<div class="minimrcnn-source" style="{FRAME}"><b>{self.place}</b>{body}</div>'


def show_source(
    thing: Callable | type, *, docstring: bool = True, lines: tuple[int, int] | None = None
) -> None:
    """Show the source of one of the package's functions, methods or classes.

    Args:
        thing: may be decorated, or a Triton kernel.
        docstring: False leaves out the docstring of `thing` (not those of a class's methods).
        lines: first and last line to show, counted from 1 at the `def` or `class`, or its decorator;
            where the docstring is left out, counted after that.

    Raises:
        TypeError: it is not from this package.
        ValueError: it has no such lines.
    """
    from IPython.display import display

    display(source(thing, docstring=docstring, lines=lines))


def source(thing: Callable | type, *, docstring: bool = True, lines: tuple[int, int] | None = None) -> Source:
    """What `show_source` shows. Arguments and errors as there."""
    thing = inspect.unwrap(thing)
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = getattr(thing, "fn", thing)  # triton.jit's
    try:
        file = Path(inspect.getsourcefile(thing)).resolve()
        code = textwrap.dedent(inspect.getsource(thing))
    except (TypeError, OSError) as error:
        raise TypeError(f"{thing!r} has no Python source: give a function or a class of minimrcnn") from error
    if not file.is_relative_to(PACKAGE):
        raise TypeError(f"{thing.__qualname__} is not minimrcnn's own: it comes from {file.name}")
    if not docstring:
        code = _without_docstring(code)
    if lines is not None:
        code = _lines(thing, code, lines)
    place = f"{file.relative_to(PACKAGE.parent).as_posix()}: {thing.__qualname__}"
    return Source(place, code, {"docstring": docstring, "lines": list(lines) if lines else None})


def _without_docstring(code: str) -> str:
    body = ast.parse(code).body[0].body
    if len(body) < 2 or not isinstance(body[0], ast.Expr) or not isinstance(body[0].value, ast.Constant):
        return code
    kept = code.splitlines(keepends=True)
    rest = kept[body[0].end_lineno :]
    while rest and not rest[0].strip():  # the empty line below a class's docstring
        rest = rest[1:]
    return "".join(kept[: body[0].lineno - 1] + rest)


def _lines(thing: Callable | type, code: str, lines: tuple[int, int]) -> str:
    first, last = lines
    kept = code.splitlines(keepends=True)
    if not 1 <= first <= last <= len(kept):
        raise ValueError(f"lines={lines}: {thing.__qualname__} has lines 1 to {len(kept)}")
    return textwrap.dedent("".join(kept[first - 1 : last]))
