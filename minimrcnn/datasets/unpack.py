"""Unpack a zip: members checked before the first is written, and never half done under the final name.

A zip is unpacked in `FOLDER.unpacking`, which is renamed when its last member is there. So whatever
bears the final name is complete, whenever the program was stopped.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from minimrcnn.errors import UserError

CHUNK = 1 << 20  # bytes


def byte_bar(total: int | None, name: str, start: int = 0) -> tqdm:
    """A progress bar on stderr that counts bytes, of `total` (None: unknown), from `start`."""
    return tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, file=sys.stderr)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError if the disk of `folder` (which need not exist) has less than `needed` bytes free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"not enough disk space in {folder} for {what}: {needed / 1e9:.2f} GB needed, "
            f"{free / 1e9:.2f} GB available. Free some space or choose another folder."
        )


def unpack(zip_path: Path, into: Path, *, folder: str = "") -> Path:
    """Unpack a zip as the new folder `into` and return it; with `folder`, only what lies below that folder.

    All members are checked before the first is written; `into` appears when all are written and their
    CRCs agree, never before.

    Raises UserError: not a zip, cut short or damaged; a member that would land outside (absolute path,
    `..`, link); larger than the free disk space; `into` is already there and not empty.
    """
    zip_path, into = Path(zip_path), Path(into)
    if into.is_dir() and not any(into.iterdir()):
        into.rmdir()
    if into.exists():
        raise UserError(f"{into} is already there. Delete it or move it away, and run again.")
    temporary = into.with_name(into.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted run left
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = _checked_members(archive, zip_path, folder)
            size = sum(member.file_size for _, member in members)
            check_space(into.parent, size, f"the contents of {zip_path.name}")
            temporary.mkdir(parents=True)
            with byte_bar(size, f"unpacking {zip_path.name}") as bar:
                for path, member in members:
                    (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                    # zipfile gives no more than the stated size (so the space check holds for a lying
                    # header too) and compares the CRC at the end of each member.
                    with archive.open(member) as source, (temporary / path).open("wb") as sink:
                        while chunk := source.read(CHUNK):
                            sink.write(chunk)
                            bar.update(len(chunk))
        os.replace(temporary, into)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{zip_path} is damaged or no zip file ({error}). Delete it and run again."
        ) from error
    except OSError as error:
        raise UserError(f"cannot unpack {zip_path} into {into}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return into


def _checked_members(
    archive: zipfile.ZipFile, zip_path: Path, folder: str
) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """(path below the new folder, member) of every file to write; refuses the whole zip if one is unsafe."""
    members, seen = [], set()
    for member in archive.infolist():
        path, windows = PurePosixPath(member.filename), PureWindowsPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 when the zip was not made on Unix
        refused = ""
        if windows.anchor or path.is_absolute() or ".." in windows.parts:
            refused = "would land outside"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            refused = "is a link or a device"
        elif member.flag_bits & 1:
            refused = "is encrypted"
        elif path in seen:
            refused = "is there twice"
        if refused:
            raise UserError(f"{zip_path}: member {member.filename!r} {refused}; nothing was unpacked.")
        if member.is_dir() or path == PurePosixPath(folder) or not path.is_relative_to(folder):
            continue
        seen.add(path)
        members.append((path.relative_to(folder), member))
    if not members:
        raise UserError(f"{zip_path} holds no file" + (f" below {folder}/." if folder else "."))
    return members
