"""Which ground truth is an anchor (or proposal) responsible for, and which of them are trained on?"""

from __future__ import annotations

import torch
from torch import Tensor

from minimrcnn.structures import Samples

BELOW = -1  # background: a negative example
BETWEEN = -2  # neither: takes no part in the loss


def match(overlap: Tensor, high: float, low: float, keep_best: bool) -> Tensor:
    """Assign each candidate to a ground truth box by IoU.

    Args:
        overlap: (..., G, N) IoU of ground truth and candidates; rows of padding hold -1.
        high: at least this IoU is a match. low: below it, background.
        keep_best: also match the candidates that are the best (ties included) for some ground truth,
            however low their IoU, so that every object has an anchor (Faster R-CNN, 3.1.2, (i)).
            As in torchvision such an anchor goes to its own best ground truth, which may be another.

    Returns:
        (..., N) int64: the row of the ground truth, BELOW or BETWEEN.
    """
    best, index = overlap.max(dim=-2)  # (..., N) each
    matched = torch.where(best < low, BELOW, BETWEEN)
    matched = torch.where(best >= high, index, matched)
    if keep_best:
        top = overlap.amax(dim=-1, keepdim=True)  # (..., G, 1)
        # top > 0: a ground truth that no anchor touches would otherwise match them all.
        is_best = ((overlap == top) & (top > 0)).any(dim=-2)  # (..., N)
        matched = torch.where(is_best, index, matched)
    return matched


def sample(matched: Tensor, random: Tensor, number: int, positive_fraction: float) -> Samples:
    """Choose a fixed number of candidates for the loss, positives first.

    Faster R-CNN 3.1.3, Fast R-CNN 2.3: at most `positive_fraction` of them positive, the rest
    negative; where positives are few, more negatives take their place.

    Args:
        matched: (B, N) int64 from `match`.
        random: (B, N) in [0, 1); the candidates with the largest numbers are taken.

    Returns:
        Samples with S = min(number, N). Rows that found no candidate are not valid.
    """
    size = min(number, matched.shape[1])
    most_positives = min(int(number * positive_fraction), size)
    positive, negative = matched >= 0, matched == BELOW  # (B, N)
    chosen_positive, positive_rows = random.masked_fill(~positive, -1).topk(most_positives, dim=1)
    chosen_negative, negative_rows = random.masked_fill(~negative, -1).topk(size, dim=1)
    positive_ok = chosen_positive >= 0  # (B, P)
    room = size - positive_ok.sum(dim=1, keepdim=True)  # (B, 1)
    negative_ok = (chosen_negative >= 0) & (torch.arange(size, device=matched.device) < room)
    rows = torch.cat([positive_rows, negative_rows], dim=1)  # (B, P + size)
    ok = torch.cat([positive_ok, negative_ok], dim=1)
    order = ok.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]  # valid rows first
    index, valid = rows.gather(1, order), ok.gather(1, order)
    is_positive = valid & positive.gather(1, index)
    return Samples(index, matched.gather(1, index).clamp(min=0), is_positive, valid)
