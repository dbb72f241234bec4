"""What the mask head is trained on: a ground truth mask becomes an MxM target inside a RoI."""

from __future__ import annotations

import torch
from torch import Tensor

from minimrcnn.roi_ops.sampling import axis

CHUNK = 64  # RoIs whose crops are float32 at one time


def axis_matrix(
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
    """How much each row of a crop counts for each row of the target: (P, size, crop_length).

    RoIAlign is separable: target = A_y @ mask @ A_x^T, one such matrix an axis. The mask that is
    sampled is the native one enlarged by nearest neighbour, so that step is an index inside the matrix.
    """
    cells = resized[:, None, None]
    index, weight = axis(low, high, size, 0, aligned, cells, most)  # (P, size, 2 * most) each
    ratio = native.to(torch.float32) / resized.to(torch.float32)
    row = (index * ratio[:, None, None]).to(torch.int64)  # nearest: floor(i * native / resized)
    row = torch.minimum(row, native[:, None, None] - 1) - crop_start[:, None, None]
    inside = (row >= 0) & (row < crop_length)  # outside its box a mask is 0
    matrix = weight.new_zeros(len(low), size, crop_length)
    return matrix.scatter_add(2, row.clamp(0, max(crop_length - 1, 0)), weight * inside)


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
        a_y = axis_matrix(
            box[:, 1], box[:, 3], size, aligned, n[:, 0], r[:, 0], place[:, 1], c.shape[1], most
        )
        a_x = axis_matrix(
            box[:, 0], box[:, 2], size, aligned, n[:, 1], r[:, 1], place[:, 0], c.shape[2], most
        )
        targets.append(a_y @ c.to(torch.float32) @ a_x.transpose(1, 2))  # (chunk, size, size)
    target = torch.cat(targets)
    return (target >= 0.5).to(torch.float32) if binary else target
