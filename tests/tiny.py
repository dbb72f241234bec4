"""A data set of rectangles, and little.py's model trained on it in milliseconds; and a program that does so.

python tests/tiny.py DATA OUT [--resume] [--steps N] [--workers N] [--slow-save]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from little import LITTLE
from PIL import Image

from minimrcnn.engine import checkpoint
from minimrcnn.engine.train import train
from minimrcnn.recipes import CONFIGS, Config

SIDE = 64  # px, of every picture
CLASSES = {3: "square", 7: "wide"}  # raw category ids with a gap


def tiny_config(**recipe: object) -> Config:
    """The `mini` configuration with the little architecture, for pictures of SIDE."""
    architecture = replace(LITTLE, min_size=(SIDE,), max_size=SIDE)
    defaults = {
        "steps": 12,
        "warmup": 2,
        "batch_size": 2,
        "base_batch": 2,
        "workers": 0,
        "checkpoint_every": 4,
    }
    mini = CONFIGS["mini"]
    return replace(mini, architecture=architecture, recipe=replace(mini.recipe, **(defaults | recipe)))


def typed(config: Config) -> list[str]:
    """What makes `config` of the `mini` configuration on the command line: --set field=value ..."""
    words = []
    for section in ("architecture", "recipe"):
        old, new = getattr(CONFIGS["mini"], section), getattr(config, section)
        for name in (field.name for field in fields(new)):
            value = getattr(new, name)
            if value != getattr(old, name):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                words += ["--set", f"{section}.{name}={text}"]
    return words


def write_dataset(
    folder: Path, pictures: int = 6, empty: tuple[int, ...] = (), flat: tuple[int, ...] = ()
) -> Path:
    """Write pictures with ids 1, 2, ... of one to three rectangles each.

    Those in `empty` have none, those in `flat` are cut to less than half of the height.
    """
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    images, annotations = [], []
    for image_id in range(1, pictures + 1):
        height = 30 if image_id in flat else SIDE
        canvas = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for _ in range(0 if image_id in empty else 1 + image_id % 3):
            category = int(rng.choice(list(CLASSES)))
            x, y, h = (int(v) for v in rng.integers(2, 24, 3))
            h = min(h + 8, height - y)
            w = h if category == 3 else h + 16 if x + h + 16 < SIDE else SIDE - x - 1
            canvas[y : y + h, x : x + w] = rng.integers(120, 255, 3)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        Image.fromarray(canvas[:height]).save(folder / "train" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": SIDE, "height": height})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in CLASSES.items()],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def main() -> None:
    """Train; `--slow-save` makes writing a checkpoint take long enough to be killed in the middle of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--slow-save", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.slow_save:
        slow_down_saving()
    config = tiny_config(steps=given.steps, workers=given.workers)
    train(config, given.data, given.out, resume=given.resume, device="cpu")


def slow_down_saving() -> None:
    """Write half of a checkpoint, wait, and write the rest."""
    whole = torch.save

    def save(state: dict, file: object) -> None:
        whole(state, file)
        size = file.tell()
        file.seek(0)
        content = Path(file.name).read_bytes()
        file.truncate(size // 2)
        file.flush()
        time.sleep(0.2)
        file.seek(0)
        file.write(content)

    checkpoint.torch.save = save


if __name__ == "__main__":
    main()
