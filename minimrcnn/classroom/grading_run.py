"""One notebook of one student, run inside the fence: the child process of `minimrcnn grade`.

    python -m minimrcnn.classroom.grading_run NOTEBOOK MEMORY FENCE

(FENCE: which of fence.py's namespaces it is in, "apart", "offline" or "none")
says on its standard output, one JSON object a line, which cell it is at and what each check printed. The
kernel does not inherit that stream. What counts is the check cell's own output, in the kernel's messages: a
line that an answer cell prints is not looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from minimrcnn.classroom.kernel import fresh_client
from minimrcnn.classroom.submissions import is_answer, is_check


def main() -> None:
    """Run the notebook named on the command line."""
    path, memory, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if kind == "apart":
        _stay_as_init()
    report = os.fdopen(os.dup(1), "w")  # Python's copies are not inherited; 1 and 2 would be
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    _limit(memory)
    if kind != "none":
        _shut_in(path.parent, kind)

    def say(**facts: object) -> None:
        report.write(json.dumps(facts) + "\n")
        report.flush()

    try:
        run(nbformat.read(path, as_version=4), path.parent, say)
    except DeadKernelError:
        say(died=True)
    except Exception as error:
        # Whatever goes wrong out here is this notebook's loss alone, and the instructor's to read.
        say(failed=f"{type(error).__name__}: {error}"[:500])


def run(notebook: NotebookNode, folder: Path, say: Callable[..., None]) -> None:
    """Run the cells up to the last check, and say what each check printed.

    Between the notebook's own first cells and the student's first, `check` and `print` are put by under a
    name that no answer can know, and back before each check: an answer that gives these names another
    meaning, by accident or not, changes nothing.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = max(place for place, cell in enumerate(cells) if is_check(cell))
    name = f"_kept_{secrets.token_hex(8)}"
    client = fresh_client(
        notebook, timeout=None, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    kept = False
    with client.setup_kernel():
        for cell in cells[: last + 1]:
            if is_answer(cell) and not kept:
                _quietly(client, f"{name} = (check, print, __import__('builtins'))")
                kept = True
            if is_check(cell) and kept:
                _quietly(client, f"check, {name}[2].print = {name}[:2]; print = {name}[1]")
            say(at=cell.id)
            client.execute_cell(cell, notebook.cells.index(cell))
            if is_check(cell):
                say(check=cell.id, printed=_printed(cell))
            elif is_answer(cell) and (wrong := _raised(cell)):
                say(answer=cell.id, raised=wrong)


def _quietly(client: NotebookClient, source: str) -> None:
    """Run a line of ours without a place in the notebook."""
    cell = nbformat.v4.new_code_cell(source)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1, store_history=False)
    client.nb.cells.pop()


def _printed(cell: NotebookNode) -> str:
    """What a cell wrote on its standard output, and the exception that ended it."""
    text = "".join(
        output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"
    )
    return (text + _raised(cell))[:5000]


def _raised(cell: NotebookNode) -> str:
    """The exception that ended a cell; "" for none."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    return f"{errors[0].ename}: {errors[0].evalue}"[:500] if errors else ""


def _limit(memory: int) -> None:
    """A limit for each process on its own; the fence watches them all together, everywhere.

    RLIMIT_DATA, not RLIMIT_AS: torch maps gigabytes of libraries that it never touches. Allocations past it
    raise MemoryError, so that the student loses the answer and not the notebook.
    """
    if sys.platform != "linux":
        return  # Windows has no such limits, macOS does not keep them
    import resource

    for which, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit is in force already
            resource.setrlimit(which, (limit, limit))


def _shut_in(folder: Path, kind: str) -> None:
    """In namespaces of its own: an end to writing anywhere else, and to the rights that would undo it."""
    from minimrcnn.classroom.shut_in import give_up_rights, loopback_up, read_only_except

    loopback_up()
    if kind == "apart":
        read_only_except(folder)
        give_up_rights()


def _stay_as_init() -> None:
    """Do the work in a child: process 1 must collect orphans, and a kernel whose parent is 1 ends itself."""
    child = os.fork()
    if child == 0:
        return
    ended = 0
    while ended != child:
        ended, _ = os.wait()
    os._exit(0)  # and the system ends every process that is left in the namespace


if __name__ == "__main__":
    main()
