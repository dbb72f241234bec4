"""The exercises copied to where a student works: python -m minimrcnn exercises start FOLDER

Called again, with a newer course too, it brings what is new and never touches a file that the student
changed: a newer version of such a file is put beside it. What was handed out is noted in FOLDER, as the
hash of each file: a file that has still this hash is the course's, any other is the student's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from minimrcnn.errors import UserError

EXERCISES = Path(__file__).resolve().parents[2] / "exercises"
NOTES = ".minimrcnn-exercises.json"
# In FOLDER a link to a chapter leads nowhere, and JupyterLab, started there, opens nothing outside. Naming
# the file keeps the copy the same in every folder, and so its hash.
CHAPTER_LINK = re.compile(r"\[([^\[\]]+)\]\(\.\./(notebooks/[\w.-]+)(?:#[^()\s]*)?\)")
CHAPTER_NAME = r"\1 (`\2` in the course's folder)"


def start(folder: Path, course: Path = EXERCISES) -> list[str]:
    """Copy all exercise notebooks to `folder`, without outputs; links to the chapters become their names.

    Returns:
        A line for each file: what was done with it.

    Raises:
        UserError: there are no exercises, one is damaged, or `folder` is none to write to.
    """
    sources = sorted(course.glob("*.ipynb"))
    if not sources:
        raise UserError(f"{course} holds no exercises: start from a copy of the course's whole folder.")
    if folder.resolve() == course.resolve():
        raise UserError(f"{folder} is the course's own folder: name another one to work in.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder to work in. It is made if it is not there.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handed_out, said = _read_notes(folder), []
        for source in sources:
            said.append(_hand_out(source, folder, handed_out))
            _write(folder / NOTES, (json.dumps(handed_out, indent=1, sort_keys=True) + "\n").encode())
        return said
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def _hand_out(source: Path, folder: Path, handed_out: dict[str, str]) -> str:
    """One notebook; `handed_out` is brought up to date."""
    content = copy_of(source)
    newest, target = _hash(content), folder / source.name
    if not _exists(target):
        _write(target, content)
        handed_out[target.name] = newest
        return f"{target.name}: new"
    if _is(target, newest):
        handed_out[target.name] = newest
        return f"{target.name}: as it should be"
    if _is(target, handed_out.get(target.name)):
        _write(target, content)
        handed_out[target.name] = newest
        return f"{target.name}: brought up to date"
    if handed_out.get(target.name) == newest:
        return f"{target.name}: yours, left alone"
    beside = _beside(target, newest, handed_out)
    if not _exists(beside) or not _is(beside, newest):
        _write(beside, content)
    handed_out[beside.name] = newest
    return f"{target.name}: yours, left alone; the course's newer version is {beside.name}"


def copy_of(source: Path) -> bytes:
    """A student's copy of an exercise notebook: the same bytes in every folder.

    The exercises store each check's `ok`, for tests to compare with: in the copy nothing has been run.

    Raises:
        UserError: it is no notebook.
    """
    try:
        notebook = json.loads(source.read_bytes())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
            else:
                text = CHAPTER_LINK.sub(CHAPTER_NAME, "".join(cell["source"]))
                cell["source"] = text.splitlines(keepends=True)
    except (ValueError, KeyError, TypeError) as error:
        build = "python -m minimrcnn exercises build"
        raise UserError(f"{source} is damaged: {error!r}. Build it anew: {build}") from error
    # As nbformat writes it, which takes too long to import for a copy.
    return (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _beside(target: Path, newest: str, handed_out: dict[str, str]) -> Path:
    """`03_x.newer.ipynb`, or the next such name that is not a file of the student's."""
    number = 1
    while True:
        path = target.with_name(f"{target.stem}.newer{number if number > 1 else ''}{target.suffix}")
        if not _exists(path) or _is(path, newest) or _is(path, handed_out.get(path.name)):
            return path
        number += 1


def _exists(path: Path) -> bool:
    return os.path.lexists(path)  # a link that leads nowhere is there too


def _is(path: Path, known: str | None) -> bool:
    """Whether a file has this hash. A link or a folder has none: it is the student's."""
    return path.is_file() and not path.is_symlink() and _hash(path.read_bytes()) == known


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_notes(folder: Path) -> dict[str, str]:
    """What was handed out. Notes that are lost or damaged make every file the student's: none is lost."""
    try:
        notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        return {str(name): str(known) for name, known in notes.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _write(path: Path, content: bytes) -> None:
    """Under a temporary name, then renamed: the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
