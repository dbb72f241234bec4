"""What one photo costs on its way into a training batch, on one core.

Ours: JPEG and polygons to a native-size uint8 tensor and masks cut to their boxes; resizing is left
to the device. Against it: Pillow, a float tensor, full-size masks, both enlarged to a short side of
800 px, as torchvision's reference does it.

    python -m benchmarks.data_path
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from benchmarks.common import THREADS, interleaved, machine
from minimrcnn.datasets.coco import CocoDataset

WIDTH, HEIGHT, OBJECTS, SHORT_SIDE = 640, 480, 7, 800


def write_data_set(folder: Path) -> tuple[Path, Path]:
    """One JPEG of about 200 KB, with detail on every scale, and 7 polygons of 30 to 60 corners."""
    generator = np.random.default_rng(0)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for cells, strength in ((4, 60), (16, 40), (64, 22), (160, 16), (640, 14)):
        shape = (
            max(2, cells * HEIGHT // WIDTH),
            cells,
            3 if cells < 20 else 1,
        )  # fine detail has little colour
        noise = Image.fromarray(
            generator.integers(0, 256, shape, dtype=np.uint8).repeat(3 // shape[2], axis=2)
        )
        layer = np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float64)
        pixels += strength * (layer / 127.5 - 1)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "photo.jpg", quality=97)
    annotations = []
    for number, corners in enumerate(np.linspace(30, 60, OBJECTS).astype(int), start=1):
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = generator.uniform(40, 130) * generator.uniform(0.8, 1.2, corners)
        centre = generator.uniform((100, 80), (WIDTH - 100, HEIGHT - 80))
        points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = points.clip(0, (WIDTH, HEIGHT)).round(2)
        box = [*points.min(axis=0), *np.ptp(points, axis=0)]
        annotations.append(
            {"id": number, "image_id": 1, "category_id": 1, "bbox": [float(v) for v in box]}
            | {"segmentation": [points.ravel().tolist()], "iscrowd": 0}
        )
    content = {
        "images": [{"id": 1, "file_name": "photo.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "blob"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", folder


def plain(dataset: CocoDataset) -> tuple[Tensor, Tensor]:
    """torchvision's way: float picture (3, 800, W) and full masks (N, 800, W) uint8."""
    image = dataset.coco.imgs[1]
    picture = to_tensor(Image.open(dataset.images / image["file_name"]).convert("RGB"))
    masks = torch.from_numpy(np.stack([dataset.coco.annToMask(a) for a in dataset.coco.imgToAnns[1]]))
    size = SHORT_SIDE * HEIGHT // min(WIDTH, HEIGHT), SHORT_SIDE * WIDTH // min(WIDTH, HEIGHT)
    picture = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", align_corners=False)[0]
    masks = torch.nn.functional.interpolate(masks[:, None].float(), size, mode="nearest")[:, 0].byte()
    return picture, masks


def main() -> None:
    """Measure both and print them with their ratio."""
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = CocoDataset(*write_data_set(Path(folder)))
        photo = Path(folder) / "photo.jpg"
        times = interleaved({"ours": lambda: dataset[0], "plain": lambda: plain(dataset)}, repeats=60)
        print(machine().replace(f"{THREADS} threads", "1 thread"))
        print(f"{WIDTH}x{HEIGHT} JPEG of {photo.stat().st_size / 1000:.0f} kB, {OBJECTS} polygons; medians")
    ours, theirs = 1e3 * times["ours"], 1e3 * times["plain"]
    print(f"minimrcnn, uint8 and mask crops         {ours:6.2f} ms a picture  {1e3 / ours:5.0f} a second")
    print(f"Pillow, float and full masks, at 800 px {theirs:6.2f} ms a picture  {1e3 / theirs:5.0f} a second")
    print(f"ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
