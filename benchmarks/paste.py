"""Paste and encode 100 masks at 800 x 1216: torchvision's way against run lengths from the grids.

python -m benchmarks.paste
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.common import interleaved, start
from minimrcnn.pasting import encode_grids

HEIGHT, WIDTH, COUNT = 800, 1216, 100


def coco_like_boxes() -> torch.Tensor:
    """(COUNT, 4) boxes with COCO's spread of sizes: the side's logarithm is uniform from 16 to 500 px."""
    side = 16 * (500 / 16) ** torch.rand(COUNT)
    ratio = 2 ** (torch.rand(COUNT) * 2 - 1)
    w, h = (side * ratio.sqrt()).clamp(max=WIDTH - 1), (side / ratio.sqrt()).clamp(max=HEIGHT - 1)
    x, y = torch.rand(COUNT) * (WIDTH - w), torch.rand(COUNT) * (HEIGHT - h)
    return torch.stack([x, y, x + w, y + h], dim=1)


def blobs() -> torch.Tensor:
    """(COUNT, 28, 28) probabilities that look like a mask head's: smooth, inside high, border low."""
    noise = torch.nn.functional.interpolate(torch.randn(COUNT, 1, 6, 6), size=28, mode="bicubic")[:, 0]
    y, x = torch.meshgrid(*[torch.linspace(-1.2, 1.2, 28)] * 2, indexing="ij")
    return torch.sigmoid(4 * (1 - x**2 - y**2) + 2 * noise)


def main() -> None:
    """Time both, check that the codes are the same bytes, print the ratio."""
    start()
    boxes, grids = coco_like_boxes(), blobs()

    def torchvision_side() -> list[dict]:
        pasted = paste_masks_in_image(grids[:, None], boxes, (HEIGHT, WIDTH))
        binary = (pasted[:, 0] > 0.5).numpy().astype(np.uint8)
        return [coco_mask.encode(np.asfortranarray(mask)) for mask in binary]

    def our_side() -> list[dict]:
        return encode_grids(grids, boxes, HEIGHT, WIDTH)

    same = sum(
        a["counts"].decode() == b["counts"] for a, b in zip(torchvision_side(), our_side(), strict=True)
    )
    times = interleaved({"torchvision": torchvision_side, "minimrcnn": our_side}, repeats=7)
    print(f"{same} of {COUNT} codes are the same bytes")
    for name, seconds in times.items():
        print(f"{name:12} {seconds * 1000:8.1f} ms")
    print(f"ratio        {times['torchvision'] / times['minimrcnn']:8.1f}  (must reach 30)")


if __name__ == "__main__":
    main()
