"""What becomes of a predicted MxM grid: pixels of the picture, or a run-length code without them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from minimrcnn.outlines import compress, find_edges, lay_out, run_lengths


def footprint(boxes: Tensor, size: int, height: int, width: int, how: str) -> tuple[Tensor, ...]:
    """Which pixels the grids (size x size) of boxes (N, 4) cover, and what stretch they are laid over.

    Returns:
        On the CPU, each (N, 2), x before y: the first pixel and the end (one past the last) inside of the
        picture, int64; where the stretch begins and how long it is, in pixels (int64 or float64).
    """
    boxes, limit = boxes.detach().cpu(), torch.tensor([width, height])
    if how == "exact":
        corner = boxes[:, :2].double()
        extent = (boxes[:, 2:].double() - corner).clamp(min=1e-6)  # a box without width would divide by 0
        first, end = boxes[:, :2].to(torch.int64) - 1, boxes[:, 2:].to(torch.int64) + 2
    else:
        centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
        half = half * ((size + 2) / size)
        corner = first = (centre - half).to(torch.int64)
        extent = ((centre + half).to(torch.int64) - corner + 1).clamp(min=1)
        end = corner + extent
    first = torch.minimum(first.clamp(min=0), limit)
    return first, torch.maximum(torch.minimum(end, limit), first), corner, extent


def place_grid(grid: Tensor, box: Tensor, height: int, width: int, how: str) -> tuple[Tensor, int, int]:
    """One grid (M, M) at the size of its box (4,), cut to the picture.

    Args:
        how: "integer" (torchvision, Detectron): a ring of zeros around the grid, so that the bilinear
            filter falls off at the border; the box grown to match and cut to whole pixels, x2 - x1 + 1
            wide. "exact" (detectron2): each pixel's centre is looked up in the box as it is.

    Returns:
        (h, w) probabilities, and the column and row of its top left pixel in the picture.
    """
    rows = (t[0].tolist() for t in footprint(box[None], grid.shape[-1], height, width, how))
    (left, top), (right, bottom), (x1, y1), (w, h) = rows
    if how == "exact":
        xs = (torch.arange(left, right, device=grid.device) + 0.5 - x1) / w * 2 - 1
        ys = (torch.arange(top, bottom, device=grid.device) + 0.5 - y1) / h * 2 - 1
        where = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=-1)  # (h, w, 2)
        return F.grid_sample(grid[None, None], where[None], align_corners=False)[0, 0], left, top
    ringed = F.pad(grid, (1, 1, 1, 1))[None, None]
    pixels = F.interpolate(ringed, size=(h, w), mode="bilinear", align_corners=False)[0, 0]
    return pixels[top - y1 : bottom - y1, left - x1 : right - x1], left, top


def paste(grids: Tensor, boxes: Tensor, height: int, width: int, how: str = "integer") -> Tensor:
    """Grids (N, M, M) over boxes (N, 4) in native pixels to whole pictures (N, height, width)."""
    pictures = grids.new_zeros(len(grids), height, width)
    for i, (grid, box) in enumerate(zip(grids, boxes, strict=True)):
        pixels, left, top = place_grid(grid, box, height, width, how)
        # Written through an index, not into views of a loop, which autograd does not allow.
        pictures[i, top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return pictures


def encode_grids(
    grids: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5, how: str = "integer"
) -> list[dict]:
    """Grids to COCO's compressed run lengths, byte for byte as if pasted whole and encoded.

    Args:
        grids: (N, M, M) probabilities, taken in float32; boxes: (N, 4) in native pixels; a pixel counts
            above `threshold`, which is 0 or more.

    Returns:
        N dicts {"size": [height, width], "counts": str}.

    Raises:
        ValueError: not as many boxes as grids.
    """
    if len(grids) != len(boxes):
        raise ValueError(f"{len(grids)} grids cannot be laid over {len(boxes)} boxes")
    grids, size = grids.detach().float().cpu(), grids.shape[-1]
    columns = [t.numpy().T for t in footprint(boxes, size, height, width, how)]  # each (2, N)
    x, y = (lay_out(*axis, size, how) for axis in zip(*columns, strict=True))
    heights = np.pad(grids.numpy(), [(0, 0), (1, 1), (1, 1)]).transpose(0, 2, 1) - np.float32(threshold)
    edges, uncertain = find_edges(np.ascontiguousarray(heights), x, y, height, width)
    codes = compress(*run_lengths(edges, len(grids), height * width))
    for i in uncertain:
        codes[i] = _encode_pixels(grids[i], boxes[i], height, width, threshold, how)
    return [{"size": [height, width], "counts": code} for code in codes]


def _encode_pixels(grid: Tensor, box: Tensor, height: int, width: int, threshold: float, how: str) -> str:
    """One grid by way of a whole bool picture: where the last bit of a pixel decides, torch has to."""
    pixels, left, top = place_grid(grid, box, height, width, how)
    picture = np.zeros((height, width), dtype=np.uint8, order="F")
    picture[top : top + pixels.shape[0], left : left + pixels.shape[1]] = (pixels > threshold).numpy()
    return coco_mask.encode(picture)["counts"].decode("ascii")
