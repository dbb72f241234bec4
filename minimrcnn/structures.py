"""What travels between the stages: fixed shapes with a validity mask, lists only at the door.

A picture set of unequal sizes becomes one padded tensor; a ragged set of boxes becomes (B, K, 4)
with a bool (B, K) that says which rows are real. Nothing inside the model asks how long a list is,
so nothing inside waits for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of fixed numbers, made once a device: copying it anew would make the host wait each time."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype).to(device)


@dataclass
class Batch:
    """Pictures, resized and normalised, padded with zeros at the right and at the bottom."""

    images: Tensor  # (B, 3, H, W) float32
    sizes: Tensor  # (B, 2) int64, (height, width) of each resized picture inside its padding
    native_sizes: Tensor  # (B, 2) int64, (height, width) before resizing
    native_shapes: list[tuple[int, int]]  # the same on the host: pasting needs them as shapes
    image_ids: Tensor  # (B,) int64, the key of every random choice about the picture


@dataclass
class MaskCrops:
    """The masks of one picture, each cut to its own tight box: 20 times smaller than full masks.

    Attributes:
        pixels: (T,) uint8, the crops one after another, each row by row.
        boxes: (N, 4) int64, x1 y1 x2 y2 (right and bottom exclusive) of each crop in native pixels.
    """

    pixels: Tensor
    boxes: Tensor

    @staticmethod
    def from_dense(masks: Tensor) -> MaskCrops:
        """Cut full-size masks (N, H, W), any dtype, nonzero inside, to their tight boxes."""
        pixels, boxes = [torch.zeros(0, dtype=torch.uint8, device=masks.device)], []
        for mask in masks:
            ys, xs = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
            y1, y2 = (int(ys[0]), int(ys[-1]) + 1) if len(ys) else (0, 0)
            x1, x2 = (int(xs[0]), int(xs[-1]) + 1) if len(xs) else (0, 0)
            pixels.append((mask[y1:y2, x1:x2] != 0).to(torch.uint8).flatten())
            boxes.append([x1, y1, x2, y2])
        return MaskCrops(torch.cat(pixels), torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4))

    def crops(self) -> list[Tensor]:
        """Each mask inside its box: (h, w) uint8."""
        sizes = [(y2 - y1, x2 - x1) for x1, y1, x2, y2 in self.boxes.tolist()]
        pieces = self.pixels.split([h * w for h, w in sizes])
        return [piece.view(size) for piece, size in zip(pieces, sizes, strict=True)]

    def to_dense(self, height: int, width: int) -> Tensor:
        """Full-size masks (N, height, width) uint8."""
        dense = torch.zeros(len(self.boxes), height, width, dtype=torch.uint8)
        for whole, crop, (x1, y1, x2, y2) in zip(dense, self.crops(), self.boxes.tolist(), strict=True):
            whole[y1:y2, x1:x2] = crop
        return dense

    def padded(self) -> Tensor:
        """(N, h, w) uint8, each crop in the top left corner of the largest."""
        crops = self.crops()
        height, width = (max((crop.shape[axis] for crop in crops), default=0) for axis in (0, 1))
        padded = torch.zeros(len(crops), height, width, dtype=torch.uint8, device=self.pixels.device)
        for slot, crop in zip(padded, crops, strict=True):
            slot[: crop.shape[0], : crop.shape[1]] = crop
        return padded


@dataclass
class Targets:
    """The ground truth of a batch. G is the largest number of objects in it, and at least 1."""

    boxes: Tensor  # (B, G, 4) float32, xyxy in pixels of the resized picture
    labels: Tensor  # (B, G) int64, 1..num_classes-1; 0 in padding
    valid: Tensor  # (B, G) bool
    crops: Tensor  # (B, G, h, w) uint8, native pixels, each mask in the top left of its slot
    crop_boxes: Tensor  # (B, G, 4) int64, xyxy of the crops in native pixels


@dataclass
class Proposals:
    """What the RPN hands on: by falling score, padded with rows that are not valid."""

    boxes: Tensor  # (B, K, 4) float32, xyxy in pixels of the resized picture
    scores: Tensor  # (B, K) float32, sigmoid of the objectness
    valid: Tensor  # (B, K) bool


@dataclass
class Samples:
    """Anchors or proposals chosen for a loss. `valid` rows come first, positives before negatives."""

    index: Tensor  # (B, S) int64, row among the candidates
    matched: Tensor  # (B, S) int64, row of the ground truth; meaningless where not positive
    positive: Tensor  # (B, S) bool
    valid: Tensor  # (B, S) bool


@dataclass
class RoIs:
    """Regions of a batch in one flat list, as the pooling wants them."""

    boxes: Tensor  # (R, 4) xyxy in pixels of the resized picture
    batch: Tensor  # (R,) int64, which picture
    valid: Tensor  # (R,) bool
    rows: Tensor  # (R,) int64, where each stood in the flattened (B, K)

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Put flat results (R, ...) back to (B, K, ...), zeros where nothing was computed."""
        full = values.new_zeros(shape[0] * shape[1], *values.shape[1:])  # (B * K, ...)
        return full.index_copy(0, self.rows, values).unflatten(0, tuple(shape[:2]))


def flatten_rois(boxes: Tensor, valid: Tensor) -> RoIs:
    """(B, K, 4) and (B, K) to one flat list.

    On a GPU every row goes through, so that the shapes stay fixed. On the CPU, where nothing waits
    for anything, only the valid rows do: a photo with 15 detections costs 15 mask heads, not 100.
    There is always at least one row, so that every head is part of every loss and has a gradient.
    """
    keep = valid.flatten()
    if boxes.device.type == "cpu":
        rows = keep.nonzero()[:, 0]  # (R,)
        rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
    else:
        rows = torch.arange(keep.numel(), device=boxes.device)
    return RoIs(boxes.flatten(0, 1)[rows], rows // valid.shape[1], keep[rows], rows)
