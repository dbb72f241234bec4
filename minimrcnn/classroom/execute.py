"""Run notebooks and store their outputs: python -m minimrcnn.classroom.execute NOTEBOOK...

Every output in notebooks/ and solutions/ was stored by this program: all cells in order on a fresh kernel,
in the notebook's folder, and nothing in the file that another run or another machine would write
differently (times, kernel and Python versions, widget models). A notebook with a failing cell stays as
it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from minimrcnn.classroom.kernel import NAME, fresh_client, kernel_environment
from minimrcnn.errors import UserError

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": NAME},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
MOMENTARY = ("execution", "collapsed", "scrolled", "vscode", "ExecuteTime")  # of a cell's metadata
WIDGET = "application/vnd.jupyter.widget-view+json"  # names a model that lives only as long as its kernel


def main(arguments: list[str] | None = None) -> int:
    """Execute each notebook; returns 1 if one failed (the others are stored all the same)."""
    args = _parser().parse_args(arguments)
    seconds, status = {}, 0
    for path in tqdm(args.notebooks, desc="notebooks", disable=None):
        try:
            name = "/".join(path.resolve().with_suffix("").parts[-2:])  # notebooks/00_tour
            seconds[name] = execute(path, timeout=args.timeout)
        except UserError as error:
            tqdm.write(f"{path}: {error}", file=sys.stderr)
            status = 1
    if args.seconds:
        store_seconds(args.seconds, seconds)
    for name, taken in seconds.items():
        print(f"{taken:6.1f} s  {name}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minimrcnn.classroom.execute",
        description="Run notebooks in place, each on a fresh kernel, and store their outputs.",
    )
    parser.add_argument("notebooks", type=Path, nargs="+", metavar="NOTEBOOK")
    parser.add_argument(
        "--seconds", type=Path, metavar="FILE", help="note the seconds of each in this JSON file"
    )
    parser.add_argument(
        "--timeout", type=int, default=300, metavar="S", help="longest time for a cell (default: 300)"
    )
    return parser


def execute(path: Path, *, timeout: int = 300) -> float:
    """Run all cells of a notebook and store it with its outputs; returns the seconds that it took.

    The seconds are those from the start of the kernel to the end of the last cell.
    Raises UserError, and leaves the file alone, if it is no notebook, or if a cell raises (unless it is
    tagged raises-exception), ends the kernel or takes longer than timeout seconds.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as a notebook: {error}") from error
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = fresh_client(notebook, timeout=timeout, resources={"metadata": {"path": str(path.parent)}})
    began = time.perf_counter()
    try:
        client.execute(env=kernel_environment())
    except CellExecutionError as error:
        raise UserError(f"not stored, a cell failed.\n{error}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise UserError(f"not stored: {error}") from error
    taken = time.perf_counter() - began
    tidy(notebook)
    nbformat.validate(notebook)
    write_notebook(path, notebook)
    return taken


def tidy(notebook: NotebookNode) -> None:
    """Take out of a notebook all that differs from run to run or from machine to machine; ids stay."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in MOMENTARY:
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
            output.pop("transient", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs with what was printed in one go in one piece: a busy machine delivers it in several.

    nbclient's coalesce_streams would also join what stands above a figure with what stands under it.
    """
    joined: list[NotebookNode] = []
    for (kind, _), group in groupby(outputs, key=lambda output: (output.output_type, output.get("name"))):
        pieces = list(group)
        if kind == "stream":
            pieces[0].text = "".join(piece.text for piece in pieces)
            del pieces[1:]
        joined += pieces
    return joined


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write under a temporary name, then rename: the file is the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Not nbformat.write with a str path: newline="" keeps "\n" on Windows, where git would see a change.
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            nbformat.write(notebook, file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def store_seconds(path: Path, seconds: dict[str, float]) -> None:
    """Add the seconds of these notebooks to a JSON file, which keeps those of the others."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {name: round(taken, 1) for name, taken in seconds.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
