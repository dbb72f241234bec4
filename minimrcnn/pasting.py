"""What becomes of a predicted MxM grid: pixels of the picture, or a run-length code without them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor


def place_grid(grid: Tensor, box: Tensor, height: int, width: int, how: str) -> tuple[Tensor, int, int]:
    """One grid (M, M) at the size of its box (4,), cut to the picture.

    Args:
        how: "integer" (torchvision, Detectron): a ring of zeros around the grid, so that the bilinear
            filter falls off at the border; the box grown to match and cut to whole pixels, x2 - x1 + 1
            wide. "exact" (detectron2): each pixel's centre is looked up in the box as it is.

    Returns:
        (h, w) probabilities, and the column and row of its top left pixel in the picture.
    """
    if how == "exact":
        return _sample_at_centres(grid, box, height, width)
    size = grid.shape[-1]
    centre, half = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * 0.5 * ((size + 2) / size)
    x1, y1, x2, y2 = torch.cat([centre - half, centre + half]).to(torch.int64).tolist()
    padded = F.pad(grid, (1, 1, 1, 1))[None, None]
    shape = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
    pixels = F.interpolate(padded, size=shape, mode="bilinear", align_corners=False)[0, 0]
    left, top = max(x1, 0), max(y1, 0)
    return pixels[top - y1 : height - y1, left - x1 : width - x1], left, top


def _sample_at_centres(grid: Tensor, box: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
    x1, y1, x2, y2 = box.tolist()
    left, top = min(max(int(x1) - 1, 0), width), min(max(int(y1) - 1, 0), height)
    right, bottom = max(min(int(x2) + 2, width), left), max(min(int(y2) + 2, height), top)
    # A box without width would divide by 0.
    xs = (torch.arange(left, right, device=grid.device) + 0.5 - x1) / max(x2 - x1, 1e-6) * 2 - 1
    ys = (torch.arange(top, bottom, device=grid.device) + 0.5 - y1) / max(y2 - y1, 1e-6) * 2 - 1
    where = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], dim=-1)  # (h, w, 2)
    return F.grid_sample(grid[None, None], where[None], align_corners=False)[0, 0], left, top


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
        grids: (N, M, M) probabilities; boxes: (N, 4) in native pixels; a pixel counts above `threshold`.

    Returns:
        N dicts {"size": [height, width], "counts": str}.
    """
    codes = []
    for grid, box in zip(grids.cpu(), boxes.cpu(), strict=True):
        pixels, left, top = place_grid(grid, box, height, width, how)
        counts = run_lengths((pixels > threshold).numpy(), left, top, height, width)
        code = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        codes.append({"size": [height, width], "counts": code["counts"].decode("ascii")})
    return codes


def run_lengths(crop: np.ndarray, left: int, top: int, height: int, width: int) -> list[int]:
    """COCO's run lengths of a bool crop (h, w) at (left, top) of a height x width picture of zeros.

    COCO runs down the columns and begins with zeros. A run starts or ends where a pixel differs from the
    one above it; these few places are found row by row, as the crop lies in memory, and then sorted
    into columns, which is cheaper than turning the crop.
    """
    h, w = crop.shape
    rows = np.zeros((h + 2, w), dtype=bool)  # zeros above and below
    rows[1 : h + 1] = crop
    row, column = np.divmod(np.flatnonzero(rows[1:] != rows[:-1]), w)
    edges = np.sort((left + column) * height + top + row)  # alternately the start and the end of a run
    starts, ends = edges[0::2], edges[1::2]
    # Where the crop is as tall as the picture a run may go on at the top of the next column.
    apart = np.flatnonzero(starts[1:] != ends[:-1])
    starts = np.concatenate([starts[:1], starts[1:][apart]])
    ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    edges = np.stack([starts, ends], axis=1).ravel()
    lengths = np.diff(edges, prepend=0, append=height * width).tolist()
    # After a mask that reaches the last pixel, pycocotools writes no closing run of 0 zeros.
    return lengths if lengths[-1] > 0 else lengths[:-1]
