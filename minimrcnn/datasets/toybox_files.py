"""The toybox on disk: pictures as PNG files, their annotations in COCO's format, and a sheet to look at."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from minimrcnn.datasets.toybox import CATEGORIES, Instance, check_size, combined, digest, scene
from minimrcnn.datasets.toybox_dice import VERSION
from minimrcnn.errors import UserError

FIRST_ID = {"train": 1, "val": 900_001}  # Image ids are unique over both splits, whatever their lengths.
PICTURES_A_PROCESS = 50  # at least: a process takes as long to start as it takes to draw 20 to 40


def draw_toybox(out: Path, *, train: int, val: int, size: int, seed: int, workers: int) -> None:
    """Write `train` and `val` pictures of size x size pixels, with COCO annotations, into the folder `out`:

        annotations/instances_{train,val}.json   train/000001.png ...   val/900001.png ...   toybox.json

    A file is named after its image id. Annotations hold the visible part of each toy as compressed RLE.
    The folder appears under its name only when it is complete. At most `workers` processes draw; the pixels
    do not depend on how many. (They are spawned: a script that asks for many pictures and several workers
    does so under `if __name__ == "__main__":`.) Raises UserError for impossible numbers, and when `out`
    exists and is not empty.
    """
    out, counts = Path(out), {"train": train, "val": val}
    _check(out, counts, size, workers)
    partial = out.absolute().parent / f".{out.absolute().name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # an older run of the same process id
    try:
        (partial / "annotations").mkdir(parents=True)
        jobs = []
        for split, count in counts.items():
            (partial / split).mkdir()
            jobs += [(seed, split, index, size) for index in range(count)]
        drawn = _draw_all(partial, jobs, workers)
        hashes = {}
        for split, records in (("train", drawn[:train]), ("val", drawn[train:])):
            hashes[split] = combined(record["digest"] for record in records)
            path = partial / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(_coco(records)), encoding="utf-8")
        about = {"generator": "toybox", "version": VERSION, "seed": seed, "size": size, **counts}
        text = json.dumps({**about, "pixel_hash": hashes}, indent=2) + "\n"
        (partial / "toybox.json").write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()  # empty: checked above; Windows does not rename onto it
        os.rename(partial, out)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check(out: Path, counts: dict[str, int], size: int, workers: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"toybox: {out} exists and is not empty; choose another folder or remove it first.")
    check_size(size)
    for split, most in (("train", FIRST_ID["val"] - 1), ("val", 99_999)):
        if not 0 <= counts[split] <= most:
            raise UserError(f"toybox: cannot draw {counts[split]} {split} pictures; choose 0 .. {most}.")
    if not any(counts.values()):
        raise UserError("toybox: no picture at all; choose a number above 0 for train or val.")
    if workers < 1:
        raise UserError(f"toybox: {workers} workers cannot draw; choose 1 or more.")


def _draw_all(folder: Path, jobs: list[tuple[int, str, int, int]], workers: int) -> list[dict]:
    """Draw the pictures (seed, split, index, size) and save them; one record a picture, in order."""
    records = []
    with contextlib.closing(_drawn(jobs, workers)) as drawn:
        bar = tqdm(drawn, total=len(jobs), desc="toybox", unit="picture", file=sys.stderr)
        for (_, split, _, _), (png, record) in zip(jobs, bar, strict=True):
            # Saved here: when Ctrl-C stops this loop no process writes into the folder that is then removed.
            (folder / split / record["image"]["file_name"]).write_bytes(png)
            records.append(record)
    return records


def _drawn(jobs: list[tuple[int, str, int, int]], workers: int) -> Iterator[tuple[bytes, dict]]:
    """What `_draw` returns for each job, in order, from so many processes that it is worth while."""
    processes = min(workers, len(jobs) // PICTURES_A_PROCESS)
    if processes < 2:
        yield from map(_draw, jobs)
        return
    # Spawned, not forked: a fork copies locks that threads of this process may hold.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(_draw, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)  # else Ctrl-C would wait for all the pictures that are left


def _draw(job: tuple[int, str, int, int]) -> tuple[bytes, dict]:
    """One picture as a PNG file, and its COCO image, annotations and digest."""
    seed, split, index, size = job
    picture, instances = scene(seed, split, index, size)
    image_id = FIRST_ID[split] + index
    # Noise has no repetitions to find: plain Huffman coding is faster, and here smaller, than searching.
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return png.getvalue(), {
        "image": {"id": image_id, "file_name": f"{image_id:06d}.png", "width": size, "height": size},
        "annotations": [_annotation(image_id, k, toy) for k, toy in enumerate(instances)],
        "digest": digest(picture, instances),
    }


def _annotation(image_id: int, k: int, instance: Instance) -> dict:
    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    return {
        "id": 10 * image_id + k + 1,  # at most 8 toys a picture: unique over both splits
        "image_id": image_id,
        "category_id": CATEGORIES.index(instance.category) + 1,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
    }


def _coco(records: list[dict]) -> dict:
    names = [{"id": k + 1, "name": name, "supercategory": "toy"} for k, name in enumerate(CATEGORIES)]
    return {
        "info": {"description": "toybox: drawn photographs of a toy box", "version": str(VERSION)},
        "licenses": [],
        "categories": names,
        "images": [record["image"] for record in records],
        "annotations": [annotation for record in records for annotation in record["annotations"]],
    }


# --- a sheet to look at -----------------------------------------------------------------------------------

OUTLINES = ((255, 59, 48), (52, 199, 89), (0, 122, 255), (255, 204, 0))
OUTLINES += ((255, 45, 220), (0, 220, 230), (255, 149, 0), (170, 110, 255))


def sheet(out_png: Path, seed: int, rows: int, columns: int, size: int) -> None:
    """Draw rows x columns pairs of val pictures, each beside itself with its masks outlined, into one PNG."""
    gap = 4
    page = Image.new("RGB", (columns * (2 * size + 2 * gap) - gap, rows * (size + gap) - gap), "white")
    for index in range(rows * columns):
        picture, instances = scene(seed, "val", index, size)
        left, top = index % columns * (2 * size + 2 * gap), index // columns * (size + gap)
        page.paste(Image.fromarray(picture), (left, top))
        page.paste(_outlined(picture, instances), (left + size + 1, top))
    palette = page.quantize(256)  # a third of the bytes of 24-bit colour
    page.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out_png, optimize=True)


def _outlined(picture: np.ndarray, instances: Sequence[Instance]) -> Image.Image:
    """The picture in grey, each visible mask tinted, with a light line inside its edge."""
    red, green, blue = (picture[:, :, channel] * np.float32(0.25) for channel in range(3))
    grey = np.stack([red + green + blue] * 3, axis=2)
    for colour, instance in zip(OUTLINES, instances, strict=False):
        inner = np.pad(instance.mask, 1)
        inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        grey[instance.mask] = 0.45 * grey[instance.mask] + 0.55 * np.array(colour)
        grey[instance.mask & ~inner] = 0.3 * np.array(colour) + 0.7 * 255
    return Image.fromarray(grey.astype(np.uint8))
