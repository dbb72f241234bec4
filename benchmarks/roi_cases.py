"""What RoIAlign meets in a Mask R-CNN on COCO: maps, RoIs with real statistics, and the least they can cost.

Sizes of objects follow COCO: 41 % are smaller than 32 x 32 px and 76 % smaller than 96 x 96 (shares that COCO
publishes). A lognormal side with these two quantiles has median 41.8 px and sigma 1.176; 480 px resized to
800 multiply it by 1.67, and then 66 % of the RoIs lie on P2. Aspect ratios are lognormal, sigma 0.45. A
picture has 7 objects. Proposals lie half around objects, moved and scaled by up to 30 %, half anywhere;
the positive ones and the detections all lie around objects, closer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA = (math.log(96) - math.log(32)) / (0.7063 + 0.2275)  # normal quantiles of .76 and .41
MEDIAN = math.exp(math.log(32) + 0.2275 * SIGMA) * 800 / 480
OBJECTS, ASPECT = 7, 0.45
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Case:
    """One call of RoIAlign in a step: RoIs a picture, bins along a side, share of RoIs around objects."""

    name: str
    rois: int
    bins: int
    around: float
    trains: bool


CASES = (
    Case("train box", 512, 7, 0.5, True),
    Case("train mask", 128, 14, 1.0, True),
    Case("infer box", 1000, 7, 0.5, False),
    Case("infer mask", 100, 14, 1.0, False),
)


@dataclass
class Inputs:
    """The tensors of a call; boxes (R, 4) in pixels, grouped by picture; maps (B, C, H, W) channels_last."""

    maps: list[Tensor]
    boxes: Tensor
    batch: Tensor
    levels: Tensor


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes of COCO's sizes, anywhere in the picture."""
    side = MEDIAN * torch.exp(SIGMA * torch.randn(count, generator=generator))
    stretch = torch.exp(0.5 * ASPECT * torch.randn(count, generator=generator))
    limit = torch.tensor([width, height], dtype=torch.float32)
    size = torch.stack([side * stretch, side / stretch], dim=1).clamp(min=2.0).minimum(limit)
    corner = torch.rand(count, 2, generator=generator) * (limit - size)
    return torch.cat([corner, corner + size], dim=1)


def boxes_around(objects: Tensor, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 4) boxes near objects (N, 4): moved, and scaled, by up to 30 % of their size."""
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    size = chosen[:, 2:] - chosen[:, :2]
    centre = chosen[:, :2] + size / 2 + size * (torch.rand(count, 2, generator=generator) - 0.5) * 0.6
    size = size * (0.7 + 0.6 * torch.rand(count, 2, generator=generator))
    limit = torch.tensor([width, height] * 2, dtype=torch.float32)
    return torch.cat([centre - size / 2, centre + size / 2], dim=1).clamp(min=0).minimum(limit)


def make_boxes(case: Case, pictures: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) of a batch, and the picture (R,) of each."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(pictures):
        objects = random_boxes(OBJECTS, height, width, generator)
        near = round(case.around * case.rois)
        boxes.append(boxes_around(objects, near, height, width, generator))
        boxes.append(random_boxes(case.rois - near, height, width, generator))
    return torch.cat(boxes), torch.arange(pictures).repeat_interleave(case.rois)


def level_of(boxes: Tensor) -> Tensor:
    """Equation 1 of the FPN paper: (R,) int64, 0 for P2."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(2, 5).to(torch.int64) - 2


def make_inputs(
    case: Case, pictures: int, height: int, width: int, channels: int, dtype: torch.dtype, device: str
) -> Inputs:
    """Random maps of an FPN for pictures of this size, and the case's RoIs."""
    boxes, batch = make_boxes(case, pictures, height, width)
    generator = torch.Generator(device).manual_seed(1)
    maps = [
        torch.randn(pictures, height // s, width // s, channels, generator=generator, device=device)
        for s in STRIDES
    ]
    maps = [m.to(dtype).permute(0, 3, 1, 2) for m in maps]
    return Inputs(maps, boxes.to(device), batch.to(device), level_of(boxes).to(device))


def points(low: Tensor, high: Tensor, bins: int, size: int) -> Tensor:
    """Where RoIs are sampled along an axis of `size` cells, 2 points a bin: (R, 2 * bins) float64."""
    step = (high - low).clamp(min=1) / bins
    where = low[:, None] + step[:, None] * (torch.arange(2 * bins) + 0.5) / 2
    return where.clamp(0, size - 1).double()


def cells_read(where: Tensor, size: int) -> Tensor:
    """Which of `size` cells the points (N, P) of each row read: (N, size) bool."""
    read = torch.zeros(len(where), size, dtype=torch.bool)
    read.scatter_(1, where.floor().long(), True)
    return read.scatter_(1, where.ceil().long(), True)


@dataclass(frozen=True)
class Traffic:
    """Numbers (not bytes) that a forward call moves, for one channel each."""

    touched: int  # cells that any RoI reads
    unique: int  # cells read, counted once for each RoI
    reads: int  # cells read, counted once for each bin
    corners: int  # reads of a program that looks at every corner of every point
    bins: int  # written
    cells: int  # of all maps


def traffic(case: Case, boxes: Tensor, batch: Tensor, sizes: list[tuple[int, int]]) -> Traffic:
    """Count for RoIs on the CPU; sizes: (height, width) of each level."""
    touched = unique = reads = 0
    levels = level_of(boxes)
    for level, (height, width) in enumerate(sizes):
        for picture in range(int(batch.max()) + 1):
            mine = (boxes / STRIDES[level])[(levels == level) & (batch == picture)]
            y = points(mine[:, 1], mine[:, 3], case.bins, height)
            x = points(mine[:, 0], mine[:, 2], case.bins, width)
            rows, columns = cells_read(y, height), cells_read(x, width)
            unique += int((rows.sum(dim=1) * columns.sum(dim=1)).sum())
            touched += int(((rows.float().T @ columns.float()) > 0).sum())
            # Each of a RoI's rows of bins meets each of its columns of bins.
            down = cells_read(y.view(-1, 2), height).view(-1, case.bins * height).sum(dim=1)
            across = cells_read(x.view(-1, 2), width).view(-1, case.bins * width).sum(dim=1)
            reads += int((down * across).sum())
    bins = len(boxes) * case.bins**2
    cells = (int(batch.max()) + 1) * sum(h * w for h, w in sizes)
    return Traffic(touched, unique, reads, 16 * bins, bins, cells)
