"""A bilinear crop: every bin is a weighted sum of a few cells (paper, section 3, figure 3).

sampling.py says which cells and which weights, gather.py sums them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from minimrcnn.roi_ops.gather import Taps, weighted_sums
from minimrcnn.roi_ops.sampling import chunks, taps
from minimrcnn.structures import constant


def crop(
    maps: Sequence[Tensor],
    rows: Sequence[Tensor],
    start: Tensor,
    length: Tensor,
    batch: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """Bilinear crops with the average over each bin's points: (R, C, height, width), channels_last.

    Args:
        maps: (B, C, H, W) each. rows: for each map the RoIs that read it, int64.
        start, length: (R, 2), x and y, where a RoI begins and how long it is, in cells of its map.
        batch: (R,) int64.
    """
    height, width = output_size
    step = length / constant((width, height), length.device)  # (R, 2)

    def parts() -> Iterator[Taps]:
        for i, features in enumerate(maps):
            for part in chunks(rows[i], step, height * width, sampling_ratio):
                where = (start[part], step[part], batch[part], features.shape[2:])
                yield Taps(i, part, *taps(*where, output_size, sampling_ratio))

    sums = weighted_sums(parts(), len(start), height * width, maps)  # (R, height * width, C)
    return sums.unflatten(1, output_size).permute(0, 3, 1, 2)
