"""A run on disk: one file that is always whole, and that can hold no code.

A checkpoint is written beside the old one and renamed over it, so that at every moment, a power cut
included, the name means either the old state or the new one. It holds tensors and plain values only,
and is read with `weights_only=True`: a pickle may call any function of Python, this reader none.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import torch

from minimrcnn.datasets.coco import ClassMap
from minimrcnn.engine.log import cut_log, read_log
from minimrcnn.engine.settings import config_from_plain, config_to_plain, differences
from minimrcnn.errors import UserError
from minimrcnn.recipes import Config

MODEL_KEYS = ("model", "architecture", "conventions", "class_map")  # weights.to_checkpoint writes these
MAY_CHANGE = ("recipe.workers", "recipe.checkpoint_every")  # no number in training depends on them


def temporary(path: Path) -> Path:
    """Where `save` writes before it renames. One fixed name: a killed run leaves one file at most."""
    return path.with_name(path.name + ".tmp")


def save(path: Path, state: dict) -> None:
    """Write `state` (dicts, lists, numbers, strings, tensors) to `path`, whole or not at all.

    Raises:
        UserError: the disk is full, or cannot be written. What stood at `path` before still stands.
    """
    partial = temporary(path)
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may keep the new name and lose the content
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(_why_not_written(path, error)) from error


def load(path: Path) -> dict:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: no such file; cut short or damaged; holding anything but tensors and plain values;
            or no checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. Train first, or give the folder of a run.")
    _require_whole_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: this file holds Python objects, not only tensors and plain values. Loading it could "
            "run code, so it was not loaded. Take a checkpoint that this package wrote."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no readable checkpoint ({_first_line(error)}).") from error
    if not isinstance(state, dict) or any(key not in state for key in MODEL_KEYS):
        raise UserError(
            f"{path}: a PyTorch file, but no checkpoint of this package, which has the keys "
            f"{', '.join(MODEL_KEYS)}. A bare state dict goes through model.load_state_dict instead."
        )
    return state


def require_same_config(saved: Config, given: Config, path: Path) -> None:
    """Refuse to go on with other settings than those that the run at `path` began with.

    Raises:
        UserError: names each field that differs, with both values.
    """
    changed = [line for line in differences(saved, given) if not line.startswith(MAY_CHANGE)]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"{path} was trained with other settings (its value, then yours):\n  {listed}\n"
            "To go on, give the settings that it began with; to train with these, choose another --out."
        )


def require_same_classes(saved: ClassMap, given: ClassMap, path: Path) -> None:
    """Refuse a data set whose classes are not those that the model at `path` knows.

    Raises:
        UserError: other number of classes, or other categories behind the same number.
    """
    if len(saved.category_ids) != len(given.category_ids):
        raise UserError(
            f"{path} knows {len(saved.category_ids)} classes ({_some(saved.names)}), the data set has "
            f"{len(given.category_ids)} ({_some(given.names)}). Take the data set that it was trained on."
        )
    for label, (ours, theirs) in enumerate(zip(_pairs(saved), _pairs(given), strict=True), start=1):
        if ours != theirs:
            raise UserError(
                f"{path}: label {label} is category {ours[0]} ({ours[1]!r}), but in the data set category "
                f"{theirs[0]} ({theirs[1]!r}). Take the data set that it was trained on."
            )


def previous_run(config: Config, class_map: ClassMap, out: Path, resume: bool) -> dict | None:
    """The checkpoint in the folder `out` that a run is to go on from, or None to begin.

    A run that was killed before its first checkpoint has config.json alone: it resumes at its beginning.

    Raises:
        UserError: `resume`, and there is nothing to resume, or it had other settings or classes; or not
            `resume`, and there is a run.
    """
    path, settings = out / "checkpoint.pt", out / "config.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: this is a file. Give a folder, which need not exist.")
    if not resume:
        log = read_log(out / "log.jsonl")
        if path.exists() or log:
            done = f", of {log[-1]['step']} steps" if log else ""
            raise UserError(
                f"{out} holds a run already{done}. Add --resume to go on with it, choose another --out to "
                "train anew, or remove the folder."
            )
        return None
    if path.exists():
        saved = load(path)
        if "step" not in saved:
            raise UserError(f"{path} holds a model alone, no state of a training: it cannot be resumed.")
        require_same_classes(ClassMap.from_plain(saved["class_map"]), class_map, path)
        require_same_config(config_from_plain(saved["config"]), config, path)
        return saved
    if not settings.exists():
        raise UserError(f"{out}: nothing to resume, there is no checkpoint.pt. Train without --resume.")
    require_same_config(_read_config(settings), config, settings)
    return None


def open_folder(out: Path, config: Config, step: int) -> None:
    """Make the folder of a run ready for the steps after `step`; leaves nothing half written behind.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary(out / "checkpoint.pt").unlink(missing_ok=True)  # of a run that was killed while saving
        partial = temporary(out / "config.json")
        partial.write_text(json.dumps(config_to_plain(config), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out / "config.json")
        cut_log(out / "log.jsonl", step)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}.") from error


def _read_config(path: Path) -> Config:
    try:
        return config_from_plain(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}). Train with another --out.") from error


def _require_whole_archive(path: Path) -> None:
    """A checkpoint is a zip archive with checksums, which torch.load itself does not verify."""
    with open(path, "rb") as file:
        start = file.read(4)
    if not b"PK\x03\x04".startswith(start):
        raise UserError(f"{path}: not a checkpoint, which would be a zip archive with tensors in it.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        damaged = "its table of contents"
    if damaged:
        raise UserError(
            f"{path}: this checkpoint is cut short or damaged (in {damaged}; {path.stat().st_size} bytes). "
            "Copy it again from where it came, or train again with another --out."
        )


def _why_not_written(path: Path, error: BaseException) -> str:
    reason, cause = _first_line(error), error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
        cause = cause.__cause__ or cause.__context__
    try:
        room = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free there. "
    except OSError:
        room = ""
    before = "The checkpoint before it is whole. " if path.exists() else ""
    return f"{path}: the checkpoint could not be written: {reason}. {room}{before}Make room, then --resume."


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder, and journals the rename by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pairs(class_map: ClassMap) -> list[tuple[int, str]]:
    return list(zip(class_map.category_ids, class_map.names, strict=True))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
