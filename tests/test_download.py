"""Downloads against a server on loopback that breaks off, lies, forgets and changes its mind."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.datasets import download
from minimrcnn.datasets.download import Archive, download_coco, fetch
from minimrcnn.datasets.unpack import check_space, unpack
from minimrcnn.errors import UserError

BODY = bytes(i * i % 251 for i in range(300_000))
MD5 = hashlib.md5(BODY).hexdigest()
Usage = namedtuple("Usage", "total used free")


@dataclass
class Site:
    """What the server serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    etag: str | None = '"v1"'
    ranges: bool = True
    break_after: list[int | None] = field(default_factory=list)  # bytes sent, one entry a request; then None
    status: list[int] = field(default_factory=list)  # errors to answer first, one a request
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range header)
    sent: int = 0
    add_to_length: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server.site
        wanted = self.headers.get("Range")
        site.requests.append((self.path, wanted))
        if site.status:
            return self.send_error(site.status.pop(0))
        body = site.files.get(self.path)
        if body is None:
            return self.send_error(404)
        start = 0
        if wanted and site.ranges and self.headers.get("If-Range") in (None, site.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start + site.add_to_length))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        limit = site.break_after.pop(0) if site.break_after else None
        part = body[start:] if limit is None else body[start : start + limit]
        site.sent += len(part)  # counted first: the client looks as soon as it has the last byte
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site({"/a.bin": BODY}, f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.site.waits = waits
    yield server.site
    server.shutdown()
    thread.join()
    server.server_close()


def get(site: Site, target: Path, size: int | None = len(BODY), md5: str | None = MD5) -> Path:
    return fetch(f"{site.url}/a.bin", target, size=size, md5=md5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- fetch


@pytest.mark.parametrize(("size", "md5"), [(len(BODY), MD5), (None, None)])
def test_a_download_arrives_whole_and_alone(site, tmp_path, size, md5):
    target = tmp_path / "new" / "a.bin"
    assert get(site, target, size, md5) == target
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["a.bin"]
    assert site.waits == []


def test_a_second_call_asks_the_server_nothing(site, tmp_path, capsys):
    get(site, tmp_path / "a.bin")
    get(site, tmp_path / "a.bin")
    assert len(site.requests) == 1
    assert "already complete" in capsys.readouterr().err


def test_a_broken_connection_is_resumed_with_the_rest_only(site, tmp_path, capsys):
    site.break_after = [100_000, 50_000]
    get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [wanted for _, wanted in site.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert site.sent == len(BODY)  # no byte twice
    assert site.waits == [1, 2]
    assert "broke off after 100,000 of 300,000 bytes; try 1 of 5 in 1 s" in capsys.readouterr().err


def test_it_gives_up_after_a_row_of_fruitless_tries_and_goes_on_later(site, tmp_path):
    site.break_after = [10_000] + [0] * 5
    with pytest.raises(UserError, match=r"gave up after 6 tries.*10,000 bytes are kept"):
        get(site, tmp_path / "a.bin")
    assert site.waits == list(download.BACK_OFF)
    assert not (tmp_path / "a.bin").exists()
    get(site, tmp_path / "a.bin")
    assert site.requests[-1] == ("/a.bin", "bytes=10000-")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_progress_starts_the_row_of_tries_anew(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS", 30_000)
    site.break_after = [30_000] * 9  # more breaks than one row of tries has
    get(site, tmp_path / "a.bin")
    assert site.waits == [1] * 9


def test_a_server_without_ranges_starts_again(site, tmp_path, capsys):
    site.ranges, site.break_after = False, [100_000]
    get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert "starts again from the first byte" in capsys.readouterr().err


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_one(site, tmp_path):
    new = BODY[::-1]
    site.break_after = [100_000] + [0] * 5
    with pytest.raises(UserError, match="gave up"):
        get(site, tmp_path / "a.bin", None, None)
    site.files["/a.bin"], site.etag = new, '"v2"'
    get(site, tmp_path / "a.bin", None, None)
    assert (tmp_path / "a.bin").read_bytes() == new


@pytest.mark.parametrize("length", [50_000, 100_000, 200_000])  # the old download had 100,000
def test_a_changed_length_is_noticed_without_an_etag(site, tmp_path, length):
    site.etag, site.break_after = None, [100_000] + [0] * 5
    with pytest.raises(UserError, match="gave up"):
        get(site, tmp_path / "a.bin", None, None)
    site.files["/a.bin"] = new = BODY[::-1][:length]
    get(site, tmp_path / "a.bin", None, None)
    assert (tmp_path / "a.bin").read_bytes() == new


def test_a_part_of_another_address_is_not_used(site, tmp_path):
    site.files["/b.bin"] = BODY[::-1]
    site.break_after = [100_000] + [0] * 5
    with pytest.raises(UserError, match="gave up"):
        get(site, tmp_path / "a.bin")
    fetch(f"{site.url}/b.bin", tmp_path / "a.bin", size=None, md5=None)
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_other_bytes_of_the_right_length_are_refused_and_removed(site, tmp_path):
    site.files["/a.bin"] = bad = bytes(len(BODY))
    with pytest.raises(UserError, match=f"a.bin.*expected {MD5}, got {hashlib.md5(bad).hexdigest()}.*again"):
        get(site, tmp_path / "a.bin")
    assert names(tmp_path) == []
    site.files["/a.bin"] = BODY
    get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_another_size_on_the_server_is_refused_before_the_first_byte(site, tmp_path):
    site.files["/a.bin"] = b"<html>Please log in</html>"
    with pytest.raises(UserError, match="26 bytes where 300,000 are expected"):
        get(site, tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_a_server_that_promises_more_than_it_sends(site, tmp_path):
    site.add_to_length = 7
    with pytest.raises(UserError, match="gave up"):
        get(site, tmp_path / "a.bin", None, None)
    assert not (tmp_path / "a.bin").exists()


def test_a_page_that_is_not_there_is_not_tried_again(site, tmp_path):
    with pytest.raises(UserError, match=r"404.*Check the address"):
        fetch(f"{site.url}/none.bin", tmp_path / "none.bin", size=None, md5=None)
    assert len(site.requests) == 1


def test_a_server_in_trouble_is_tried_again(site, tmp_path):
    site.status = [500, 503]
    get(site, tmp_path / "a.bin")
    assert len(site.requests) == 3
    assert site.waits == [1, 2]


def test_no_server_at_all(site, tmp_path):
    with pytest.raises(UserError, match=r"no connection.*Check the network"):
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", size=None, md5=None)
    assert site.waits == list(download.BACK_OFF)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "a.bin"])
def test_only_http_is_downloaded(tmp_path, url):
    with pytest.raises(UserError, match="only http"):
        fetch(url, tmp_path / "a.bin", size=None, md5=None)


def test_ctrl_c_keeps_what_is_there(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "CHUNK", 40_000)
    read, calls = http.client.HTTPResponse.read, []

    def read_then_interrupt(self, amount=None):
        calls.append(amount)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", read_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:120_000]
    assert "the same command goes on from there" in capsys.readouterr().err
    get(site, tmp_path / "a.bin")
    assert site.requests[-1] == ("/a.bin", "bytes=120000-")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_stopped_between_the_last_byte_and_the_rename(site, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "file_hash", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(site, tmp_path / "a.bin")
    get(site, tmp_path / "a.bin")
    assert len(site.requests) == 1
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_foreign_file_at_the_target_is_kept(site, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="expected 300,000 bytes, got 4"):
        get(site, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_full_disk_is_noticed_before_the_first_byte(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 299_999))
    with pytest.raises(UserError, match=r"0\.00 GB needed, 0\.00 GB available"):
        get(site, tmp_path / "a.bin")
    assert names(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 300_000))
    get(site, tmp_path / "a.bin")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_disk_that_fills_while_writing(tmp_path, site):
    os.symlink("/dev/full", tmp_path / "a.bin.part")
    with pytest.raises(UserError, match=r"cannot write.*No space left.*Make room"):
        get(site, tmp_path / "a.bin")


def test_space_is_asked_of_the_disk_of_a_folder_that_is_not_there_yet(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 5_000_000_000))
    check_space(tmp_path / "x" / "y", 5_000_000_000, "it")
    assert asked == [tmp_path]
    with pytest.raises(UserError, match=r"for it: 6\.00 GB needed, 5\.00 GB available"):
        check_space(tmp_path / "x", 6_000_000_000, "it")


# ---------------------------------------------------------------- unpack


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FILES = {"top/a.txt": b"a" * 5000, "top/sub/b.txt": b"b", "other/c.txt": b"c"}


@pytest.fixture
def zip_path(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped(FILES))
    return tmp_path / "x.zip"


def test_unpack_all_or_one_folder(zip_path, tmp_path):
    (tmp_path / "all").mkdir()  # an empty folder is no obstacle
    assert tree(unpack(zip_path, tmp_path / "all")) == FILES
    assert tree(unpack(zip_path, tmp_path / "d" / "top", folder="top")) == {
        "a.txt": b"a" * 5000,
        "sub/b.txt": b"b",
    }
    assert names(tmp_path) == ["all", "d", "x.zip"]
    with pytest.raises(UserError, match="no file below nothing/"):
        unpack(zip_path, tmp_path / "e", folder="nothing")


def test_what_is_already_there_is_kept(zip_path, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "mine").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        unpack(zip_path, tmp_path / "all")
    assert tree(tmp_path / "all") == {"mine": b"mine"}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("../x", "outside"),
        ("a/../../x", "outside"),
        ("..\\x", "outside"),
        ("/etc/x", "outside"),
        ("C:/x", "outside"),
        ("\\\\host\\x", "outside"),
        (link("l"), "link"),
    ],
)
def test_malicious_members_are_refused_before_anything_is_written(tmp_path, member, why):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.txt", b"good")
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(UserError, match=f"{why}.*nothing was unpacked"):
        unpack(tmp_path / "x.zip", tmp_path / "in" / "out")
    assert names(tmp_path) == ["x.zip"]


@given(st.text(alphabet="./\\aC:", min_size=1, max_size=12))
def test_no_member_name_ever_lands_outside(tmp_path_factory, name):
    base = tmp_path_factory.mktemp("u")
    (base / "x.zip").write_bytes(zipped({name: b"1"}))
    try:
        unpack(base / "x.zip", base / "in" / "out")
    except UserError:
        assert names(base) in (["x.zip"], ["in", "x.zip"])
    assert all(path.startswith(("x.zip", "in/out/")) for path in tree(base))


def test_the_same_member_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(UserError, match="there twice"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_a_zip_bomb_does_not_fit_on_the_disk(tmp_path, monkeypatch):
    (tmp_path / "x.zip").write_bytes(zipped({"zeros": bytes(2_000_000)}))
    assert (tmp_path / "x.zip").stat().st_size < 5000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1_999_999))
    with pytest.raises(UserError, match="not enough disk space"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert names(tmp_path) == ["x.zip"]


def test_a_header_that_lies_about_the_size_gets_no_more_than_it_states(tmp_path):
    content = zipped({"zeros": bytes(2_000_000)})
    size = (2_000_000).to_bytes(4, "little")
    assert content.count(size) == 2  # local header and central directory
    (tmp_path / "x.zip").write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match="damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert names(tmp_path) == ["x.zip"]


def test_damage_leaves_nothing_that_looks_whole(tmp_path):
    content = bytearray(zipped({"a": b"first", "b": BODY}, zipfile.ZIP_STORED))
    content[150_000] ^= 1  # a wrong CRC in the last member, after the first is written
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*'b'"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "x.zip").write_bytes(content[:100_000])
    with pytest.raises(UserError, match="damaged or no zip"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert names(tmp_path) == ["x.zip"]


def test_ctrl_c_while_unpacking_leaves_nothing_that_looks_whole(zip_path, tmp_path, monkeypatch):
    read, calls = zipfile.ZipExtFile.read, []

    def read_then_interrupt(self, amount=-1):
        calls.append(amount)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, amount)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", read_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(zip_path, tmp_path / "out")
    assert names(tmp_path) == ["x.zip"]
    (tmp_path / "out.unpacking").mkdir()  # what a killed process would leave
    (tmp_path / "out.unpacking" / "half").write_text("half")
    assert tree(unpack(zip_path, tmp_path / "out")) == FILES
    assert names(tmp_path) == ["out", "x.zip"]


# ---------------------------------------------------------------- COCO 2017


@pytest.fixture
def coco(site, monkeypatch):
    contents = {
        "annotations/annotations_trainval2017.zip": {
            "annotations/instances_train2017.json": b"{}",
            "annotations/instances_val2017.json": b"{}",
        },
        "zips/val2017.zip": {"val2017/1.jpg": b"1"},
        "zips/train2017.zip": {f"train2017/{i}.jpg": os.urandom(20_000) for i in range(4)},
    }
    table = []
    for path, files in contents.items():
        body = zipped(files)
        site.files["/" + path] = body
        folder = next(iter(files)).split("/")[0]
        md5 = hashlib.md5(body).hexdigest()
        table.append(Archive(path, len(body), md5, folder, len(files), sum(map(len, files.values())) / 1e9))
    monkeypatch.setattr(download, "COCO_2017", tuple(table))
    return {name: content for files in contents.values() for name, content in files.items()}


def test_coco_end_to_end_and_a_second_time(site, coco, tmp_path, capsys):
    assert download_coco(tmp_path / "coco", base_url=site.url + "/") == tmp_path / "coco"
    assert tree(tmp_path / "coco") == coco
    asked = len(site.requests)
    assert asked == 3
    capsys.readouterr()
    download_coco(tmp_path / "coco", base_url=site.url)
    assert len(site.requests) == asked
    said = capsys.readouterr().err
    assert all(f"{name} is already complete" in said for name in ("train2017", "val2017", "annotations"))


def test_coco_keeps_the_zips_when_asked(site, coco, tmp_path):
    download_coco(tmp_path, base_url=site.url, keep_zips=True)
    assert {"train2017.zip", "val2017.zip", "annotations_trainval2017.zip"} < set(names(tmp_path))


def test_coco_goes_on_where_it_stopped(site, coco, tmp_path):
    site.break_after = [None, None] + [20_000] + [0] * 5
    with pytest.raises(UserError, match="gave up"):
        download_coco(tmp_path, base_url=site.url)
    assert not (tmp_path / "train2017").exists()
    site.requests.clear()
    download_coco(tmp_path, base_url=site.url)
    assert site.requests == [("/zips/train2017.zip", "bytes=20000-")]
    assert tree(tmp_path) == coco


def test_coco_with_pictures_missing_is_not_called_complete(site, coco, tmp_path):
    download_coco(tmp_path, base_url=site.url)
    (tmp_path / "train2017" / "2.jpg").unlink()
    with pytest.raises(UserError, match="train2017 has 3 files where 4 belong"):
        download_coco(tmp_path, base_url=site.url)


def test_coco_checks_the_space_for_everything_before_it_asks_for_anything(site, coco, tmp_path, monkeypatch):
    sizes = {archive.folder: archive.size for archive in download.COCO_2017}
    unpacked = sum(map(len, coco.values()))
    needed = unpacked + sizes["train2017"]  # the other two zips are gone by then
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(UserError, match=r"not enough disk space.*COCO 2017"):
        download_coco(tmp_path, base_url=site.url)
    assert site.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    with pytest.raises(UserError, match="not enough disk space"):
        download_coco(tmp_path, base_url=site.url, keep_zips=True)
    download_coco(tmp_path, base_url=site.url)


def test_the_published_table():
    """Sizes of the real set: about 20.4 GB of zips, and a peak below 42 GB."""
    assert sum(archive.size for archive in download.COCO_2017) == 19_336_861_798 + 815_585_330 + 252_907_541
    assert {archive.folder: archive.files for archive in download.COCO_2017} == {
        "annotations": 6,
        "val2017": 5_000,
        "train2017": 118_287,
    }
    assert 40e9 < download._peak_space(Path("/nowhere"), list(download.COCO_2017), False) < 42e9
