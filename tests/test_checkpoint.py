"""A checkpoint is whole or not there, and holds no code."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_config

from minimrcnn.datasets.coco import ClassMap
from minimrcnn.engine import checkpoint
from minimrcnn.errors import UserError

CLASSES = ClassMap((3, 7), ("square", "wide"))
STATE = {
    "model": {"weight": torch.arange(20_000.0), "half": torch.ones(3, dtype=torch.float16)},
    "architecture": {"blocks": [1, 2]},
    "conventions": {"paste": "exact"},
    "class_map": CLASSES.to_plain(),
    "step": 3,
}


@pytest.fixture
def path(tmp_path):
    """A checkpoint that is good."""
    checkpoint.save(tmp_path / "checkpoint.pt", STATE)
    return tmp_path / "checkpoint.pt"


def test_round_trip(path):
    loaded = checkpoint.load(path)
    torch.testing.assert_close(loaded.pop("model"), STATE["model"], rtol=0, atol=0)
    assert loaded == {key: value for key, value in STATE.items() if key != "model"}
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 0.99999))
def test_cut_short_anywhere(path, share):
    cut = path.with_name("cut.pt")
    cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"cut\.pt: this checkpoint is cut short or damaged"):
        checkpoint.load(cut)


def test_one_flipped_bit_in_the_weights(path):
    """torch.load alone would read this file without a word."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path)


class Evil:
    """Unpickled by Python's own pickle it makes the folder that it is given."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_with_code_in_it(tmp_path):
    harm, path = tmp_path / "harm", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({**STATE, "model": Evil(harm)}))
    with pytest.raises(UserError, match=r"evil\.pt: not a checkpoint"):
        checkpoint.load(path)
    assert not harm.exists()


def test_a_checkpoint_with_code_in_it(tmp_path):
    harm, path = tmp_path / "harm", tmp_path / "evil.pt"
    torch.save({**STATE, "model": Evil(harm)}, path)
    with pytest.raises(UserError, match=r"evil\.pt: this file holds Python objects.*not loaded"):
        checkpoint.load(path)
    assert not harm.exists()
    torch.load(path, weights_only=False)  # the file does what the test says
    assert harm.is_dir()


@pytest.mark.parametrize("content", [b"hello world\n" * 9, b"{}", b"\x80\x04."])
def test_other_files(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: not a checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"x\.pt: no readable checkpoint"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("state", [{"weight": torch.ones(3)}, [1, 2], torch.ones(3)])
def test_a_state_dict_of_another_program(tmp_path, state):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no checkpoint of this package"):
        checkpoint.load(tmp_path / "x.pt")


@contextmanager
def small_disk():
    """No file of this process may grow beyond 50 kB, pytest's own output among them, so not for long."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(path):
    """The state, of 80 kB, does not fit; what was there stays, and nothing half written is left."""
    before = path.read_bytes()
    message = r"File too large.*checkpoint before it is whole.*--resume"
    with small_disk(), pytest.raises(UserError, match=message):
        checkpoint.save(path, {**STATE, "step": 4})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_noticed_late(path, monkeypatch, call):
    """Some file systems say so only when the data goes out."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"checkpoint\.pt.*No space left on device"):
        checkpoint.save(path, {**STATE, "step": 4})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="No such file or directory"):
        checkpoint.save(tmp_path / "missing" / "checkpoint.pt", STATE)


def test_other_settings(path):
    config = tiny_config()
    checkpoint.require_same_config(config, tiny_config(workers=5, checkpoint_every=9), path)
    with pytest.raises(UserError, match=r"recipe\.lr: 0\.003, 0\.5\n.*another --out"):
        checkpoint.require_same_config(config, tiny_config(lr=0.5), path)
    with pytest.raises(UserError, match=r"recipe\.steps: 12, 13"):
        checkpoint.require_same_config(config, tiny_config(steps=13), path)
    other = replace(config, architecture=replace(config.architecture, fpn_channels=32))
    with pytest.raises(UserError, match=r"architecture\.fpn_channels: 16, 32"):
        checkpoint.require_same_config(config, other, path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ClassMap((3, 7, 9), ("square", "wide", "tall")), r"knows 2 classes.*has 3 \(square, wide, tall\)"),
        (ClassMap((3, 8), ("square", "wide")), r"label 2 is category 7 \('wide'\).*category 8"),
        (ClassMap((3, 7), ("square", "broad")), r"label 2 .*'broad'"),
    ],
)
def test_other_classes(path, other, said):
    checkpoint.require_same_classes(CLASSES, CLASSES, path)
    with pytest.raises(UserError, match=said):
        checkpoint.require_same_classes(CLASSES, other, path)
