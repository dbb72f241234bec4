"""Download: resumed, verified, and never half done under a name that looks whole.

A download grows in `NAME.part` and gets its name only after its size and checksum agree. So whatever
bears the final name is complete, whenever the program was stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from minimrcnn.datasets.unpack import CHUNK, byte_bar, check_space, unpack
from minimrcnn.errors import UserError

TIMEOUT = 60  # seconds without a single byte
# Seconds before each new try. A try that brings at least PROGRESS bytes starts the row anew.
BACK_OFF = (1, 2, 4, 8, 16)
PROGRESS = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One zip of a data set and what is in it."""

    path: str  # below the base URL
    size: int  # bytes of the zip
    md5: str
    folder: str  # the top folder inside the zip, and its name once unpacked
    files: int  # files in that folder
    unpacked: float  # 1e9 bytes on the disk, rounded up to cover the file system's blocks


# http, not https: the host serves the certificate of its storage provider, which does not match the
# name images.cocodataset.org. Nothing on the way is trusted: the size and the md5 below decide.
COCO_URL = "http://images.cocodataset.org"
COCO_2017 = (
    Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "f4bbac642086de4f52a3fdda2de5fa2c",
        "annotations",
        6,
        0.85,
    ),
    Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", "val2017", 5_000, 0.84),
    Archive(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", "train2017", 118_287, 19.7
    ),
)


def say(text: str) -> None:
    """Print one line to stderr without tearing a progress bar."""
    tqdm.write(text, file=sys.stderr)


# ---------------------------------------------------------------- download


class _Broken(Exception):
    """The connection failed in a way that another try may mend."""


class _Part:
    """The unfinished download beside its target, and what the server said of the file it belongs to.

    The second file (`.part.json`: url, total, validator) is what makes it safe to append: bytes of
    yesterday's version of the file must not be joined to bytes of today's.
    """

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self.notes = target.with_name(target.name + ".part.json")

    def read(self) -> tuple[int, dict]:
        """(bytes already here, notes); (0, {}) when there is nothing to go on from."""
        try:
            notes = json.loads(self.notes.read_text())
            if notes["url"] == self.url and {"total", "validator"} <= notes.keys():
                return self.path.stat().st_size, notes
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, {}

    def begin(self, total: int | None, validator: str | None) -> None:
        """Start again from the first byte."""
        self.path.write_bytes(b"")
        self.notes.write_text(json.dumps({"url": self.url, "total": total, "validator": validator}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def fetch(url: str, target: Path, *, size: int | None, md5: str | None) -> Path:
    """Download `url` to `target` and return `target`; a file already there is verified and kept.

    size: expected bytes, md5: expected hex digest; None where it is not known. An interrupted download
    (Ctrl-C, broken connection, power cut) goes on where it stopped when it is called again. A broken
    connection is tried again by itself, `len(BACK_OFF)` times in a row at most.

    Raises UserError: not http(s), no connection, refused by the server, disk full, wrong size or
    checksum (the bad download is then removed; a file that was already at `target` is not).
    """
    target = Path(target)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http:// and https:// addresses can be downloaded")
    if target.exists():
        if problem := _mismatch(target, size, md5):
            raise UserError(
                f"{target} is already there but {problem}. Delete it or move it away, and run again."
            )
        say(f"{target} is already complete")
        return target
    part = _Part(url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(part, target, size)
    except KeyboardInterrupt:
        say(f"stopped; {part.path} is kept, and the same command goes on from there")
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {part.path}: {error}. Make room or choose another folder, and run again."
        ) from error
    if problem := _mismatch(part.path, size, md5):
        part.remove()
        raise UserError(
            f"{target.name} from {url}: {problem}. The bad download was removed; run again to "
            "start from the beginning. If that gives the same, the file on the server has changed."
        )
    os.replace(part.path, target)
    part.remove()
    return target


def _mismatch(path: Path, size: int | None, md5: str | None) -> str:
    """What is wrong with the file, or ''."""
    got = path.stat().st_size
    if size is not None and got != size:
        return f"its size is wrong: expected {size:,} bytes, got {got:,}"
    if md5 is not None and (found := file_hash(path, "md5")) != md5:
        return f"its md5 is wrong: expected {md5}, got {found}"
    return ""


def file_hash(path: Path, algorithm: str) -> str:
    """Hex digest of a file, with a progress bar; algorithm as in hashlib ("md5", "sha256")."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, byte_bar(path.stat().st_size, f"{algorithm} of {path.name}") as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _download(part: _Part, target: Path, size: int | None) -> None:
    """Try until `part` is complete, or until a row of tries brought nothing new."""
    failures, farthest = 0, part.read()[0]
    while True:
        try:
            _attempt(part, target, size)
            return
        except _Broken as broken:
            reached = part.read()[0]
            if reached >= farthest + PROGRESS:
                failures, farthest = 0, reached
            if failures == len(BACK_OFF):
                raise UserError(
                    f"{part.url}: {broken}; gave up after {failures + 1} tries. Check the network and run "
                    f"again: {reached:,} bytes are kept in {part.path} and will not be downloaded twice."
                ) from broken
            wait = BACK_OFF[failures]
            failures += 1
            say(f"{target.name}: {broken}; try {failures} of {len(BACK_OFF)} in {wait} s")
            time.sleep(wait)


def _attempt(part: _Part, target: Path, size: int | None) -> None:
    """One connection: ask for what is missing, append it. Raises _Broken when another try may help."""
    have, notes = part.read()
    if have and have == notes["total"]:
        return
    headers = {"User-Agent": "minimrcnn"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if notes["validator"]:
            headers["If-Range"] = notes["validator"]  # a changed file comes whole (200), not as a range (206)
    request = urllib.request.Request(part.url, headers=headers)
    with _connect(request, part) as response:
        start, total = _place(response, have, notes, part)
        if size is not None and total not in (None, size):
            raise UserError(
                f"{part.url}: the server has a file of {total:,} bytes where {size:,} are expected, so it is "
                "another file. Check the address and your network (a login page in between?)."
            )
        check_space(target.parent, (total or size or 0) - start, target.name)
        if start == 0:
            if have:
                say(f"{target.name}: the server starts again from the first byte")
            etag = response.headers.get("ETag", "")
            strong = etag and not etag.startswith("W/")  # a weak one never matches (RFC 9110, 13.1.5)
            part.begin(total, etag if strong else response.headers.get("Last-Modified"))
        _append(response, part.path, target.name, start, total)


def _connect(request: urllib.request.Request, part: _Part) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416:  # it has no bytes there: the file has become shorter
            part.remove()
            raise _Broken("the file on the server has changed, starting again") from error
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(answer) from error
        raise UserError(f"{part.url}: {answer}. Check the address.") from error
    except urllib.error.URLError as error:
        if "certificate" in str(error.reason).lower():  # trying again does not mend it
            raise UserError(f"{part.url}: {error.reason}. Update the root certificates of Python.") from error
        raise _Broken(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection ({error or type(error).__name__})") from error


def _place(response: http.client.HTTPResponse, have: int, notes: dict, part: _Part) -> tuple[int, int | None]:
    """(offset of the first byte that comes, bytes of the whole file) of a 200 or 206 answer."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    span, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    total = int(whole) if whole.isdigit() else None
    if span.partition("-")[0] != str(have) or notes["total"] not in (None, total):
        part.remove()
        raise _Broken("the file on the server has changed, starting again")
    return have, total


def _append(response: http.client.HTTPResponse, path: Path, name: str, start: int, total: int | None) -> None:
    have = start
    with path.open("ab") as file, byte_bar(total, name, start) as bar:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(f"the connection broke off ({error or type(error).__name__})") from error
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:  # http.client ends a short body without an error
        raise _Broken(f"the connection broke off after {have:,} of {total:,} bytes")


# ---------------------------------------------------------------- COCO 2017


def download_coco(out: Path, *, base_url: str = COCO_URL, keep_zips: bool = False) -> Path:
    """COCO 2017 train, val and annotations: `out/train2017/`, `out/val2017/`, `out/annotations/*.json`.

    About 21 GB remain; while train2017 is unpacked about 41 GB are needed, which is checked before the
    first byte. Runs as often as you like: what is complete is left alone, what is not goes on.

    Raises UserError: as `fetch` and `unpack`; a folder of that name that is not complete.
    """
    out = Path(out)
    missing = []
    for archive in COCO_2017:
        if _is_complete(out / archive.folder, archive.files):
            say(f"{out / archive.folder} is already complete ({archive.files:,} files)")
        else:
            missing.append(archive)
    check_space(out, _peak_space(out, missing, keep_zips), "COCO 2017 (zip and unpacked)")
    for archive in missing:
        zip_path = out / PurePosixPath(archive.path).name
        fetch(f"{base_url.rstrip('/')}/{archive.path}", zip_path, size=archive.size, md5=archive.md5)
        unpack(zip_path, out / archive.folder, folder=archive.folder)
        if not keep_zips:
            zip_path.unlink()
    say(f"COCO 2017 is complete in {out}")
    return out


def _is_complete(folder: Path, files: int) -> bool:
    if not folder.exists() or not (found := sum(1 for _ in os.scandir(folder))):
        return False
    if found < files:
        raise UserError(
            f"{folder} has {found:,} files where {files:,} belong. Delete it or move it away, and run again."
        )
    return True


def _peak_space(out: Path, archives: list[Archive], keep_zips: bool) -> int:
    """The most bytes in use at any moment beyond what is on the disk now, in the order of `download_coco`."""
    used = peak = 0
    for archive in archives:
        zip_path = out / PurePosixPath(archive.path).name
        here = [zip_path, zip_path.with_name(zip_path.name + ".part")]
        used += archive.size - sum(path.stat().st_size for path in here if path.exists())
        used += int(archive.unpacked * 1e9)
        peak = max(peak, used)
        if not keep_zips:
            used -= archive.size
    return peak
