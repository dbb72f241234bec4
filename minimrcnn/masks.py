"""What the mask head is trained on: a ground truth mask becomes an MxM target inside a RoI."""

from __future__ import annotations

import torch
from torch import Tensor

from minimrcnn.roi_ops.sampling import axis

CHUNK = 64  # RoIs whose crops are float32 at one time


def sampling_matrices(
    low: Tensor,
    high: Tensor,
    size: int,
    aligned: bool,
    native: Tensor,
    resized: Tensor,
    crop_start: Tensor,
    crop_length: int,
    most: int,
) -> Tensor:
    """How much each row, and each column, of a crop counts for each of the target: (P, 2, size, crop_length).

    RoIAlign is separable: target = A_y @ mask @ A_x^T, one such matrix an axis. The mask that is
    sampled is the native one enlarged by nearest neighbour, so that step is an index inside the matrix.

    Args:
        low, high: (P, 2), y and x, where each RoI begins and ends, pixels of the resized picture.
        native, resized: (P, 2) sizes of its picture. crop_start: (P, 2), y and x of its crop, native pixels.
        most: as in `sampling.axis`.
    """
    cells = resized[..., None, None]
    index, weight = axis(low, high, size, 0, aligned, cells, most)  # (P, 2, size, K) each
    ratio = native.to(torch.float32) / resized.to(torch.float32)
    row = (index * ratio[..., None, None]).to(torch.int64)  # nearest: floor(i * native / resized)
    row = torch.minimum(row, native[..., None, None] - 1) - crop_start[..., None, None]
    inside = (row >= 0) & (row < crop_length)  # outside its box a mask is 0
    matrix = weight.new_zeros(len(low), 2, size, crop_length)
    return matrix.scatter_add(3, row.clamp(0, max(crop_length - 1, 0)), weight * inside)


def mask_targets(
    crops: Tensor,
    crop_boxes: Tensor,
    boxes: Tensor,
    native: Tensor,
    resized: Tensor,
    size: int,
    aligned: bool,
    binary: bool,
    longest: int,
) -> Tensor:
    """What the mask head should answer: RoIAlign of the matched mask, (P, size, size) float32.

    The same numbers as torchvision's `project_masks_on_boxes` on full masks enlarged with the
    picture, without ever making one.

    Args:
        crops: (P, h, w) uint8, the matched masks, native pixels; crop_boxes: (P, 4) int64, where they lie.
        boxes: (P, 4) RoIs in pixels of the resized picture; native, resized: (P, 2) picture sizes.
        binary: cut at .5 (detectron2, paper) or keep the fractions (torchvision).
        longest: no side of a resized picture is longer; fixes the number of sampling points.
    """
    if crops.numel() == 0:
        return boxes.new_zeros(len(crops), size, size)
    if boxes.device.type == "cpu":  # nothing waits: as few points as will do, and all that a RoI asks for
        longest = int((boxes[:, 2:] - boxes[:, :2]).amax())
    most = longest // size + 2
    targets = []
    for c, place, box, n, r in zip(
        *(t.split(CHUNK) for t in (crops, crop_boxes, boxes, native, resized)), strict=True
    ):
        height, width = c.shape[1:]
        low, high, start = box[:, :2].flip(1), box[:, 2:].flip(1), place[:, :2].flip(1)  # y and x
        matrices = sampling_matrices(low, high, size, aligned, n, r, start, max(height, width), most)
        a_y, a_x = matrices[:, 0, :, :height], matrices[:, 1, :, :width]
        targets.append(a_y @ c.to(torch.float32) @ a_x.transpose(1, 2))  # (chunk, size, size)
    target = torch.cat(targets)
    return (target >= 0.5).to(torch.float32) if binary else target
