"""Weighted sums of a map's cells: what every bilinear crop is, and what its gradient is.

A map lies in memory as rows of C channels, one row a cell (channels_last). A bin of a crop is the sum of
a few rows, each with a weight: a bag of rows, which is what `F.embedding_bag` sums. Its gradient is the same
sum, read the other way round: each cell is a bag of the bins that it went into. So the backward pass is
a sort of the entries by cell and one more `embedding_bag`: nothing is written to twice, so that the
result is the same in every run, without atomics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class Taps(NamedTuple):
    """What some of the RoIs read, all from one map. A tap is one cell read with one weight."""

    map: int  # which of the maps
    rows: Tensor | slice  # which of the RoIs: n of them
    index: Tensor  # (n * bins, K) int32, cells of the map: (picture * H + y) * W + x
    weight: Tensor  # (n * bins, K)


def cells_read(features: Tensor, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The map's cells as rows of channels, and the index into them.

    A channels_last map in `dtype` is taken as it lies. Of any other, the cells that are read are copied: the
    cost of a map in another layout.

    Args:
        features: (B, C, H, W). index: (N, K) cells.

    Returns:
        (T, C) rows in `dtype`, and the index (N, K) of each cell among them.
    """
    cells = features.detach().permute(0, 2, 3, 1)  # (B, H, W, C)
    if features.dtype == dtype and cells.is_contiguous():
        return cells.flatten(0, 2), index
    read = torch.zeros(cells.shape[:3].numel(), dtype=torch.bool, device=index.device)
    read[index.flatten()] = True
    picture, y, x = read.view(cells.shape[:3]).nonzero(as_tuple=True)
    place = read.cumsum(0, dtype=index.dtype) - 1  # of each cell among those that are read
    return cells[picture, y, x].to(dtype), place[index]


def bag_sum(index: Tensor, rows: Tensor, weight: Tensor, begins: Tensor | None = None) -> Tensor:
    """sum over k of weight[n, k] * rows[index[n, k]]; with `begins`, bags of any length in one list."""
    return F.embedding_bag(index, rows, begins, mode="sum", per_sample_weights=weight.to(rows.dtype))


def gradient(taps: list[Taps], bins: int, crops: Tensor, cells: int) -> Tensor:
    """The transposed sum: what each cell of a map gets back from the bins that read it, (cells, C).

    Args:
        taps: all that was read from the map. crops: (R * bins, C), the gradient of every bin.
    """
    index, weight, reader = [], [], []
    number = torch.arange(len(crops), device=crops.device, dtype=torch.int32).view(-1, bins)  # (R, bins)
    for part in taps:
        index.append(part.index.flatten())
        weight.append(part.weight.flatten())
        reader.append(number[part.rows].view(-1, 1).expand_as(part.index).flatten())  # the bin of each tap
    cell, order = torch.cat(index).sort(stable=True)  # stable, so that every run adds in the same order
    begins = torch.searchsorted(
        cell, torch.arange(cells, device=cell.device, dtype=torch.int32), out_int32=True
    )
    return bag_sum(torch.cat(reader)[order], crops, torch.cat(weight)[order], begins)


class WeightedSums(torch.autograd.Function):
    """Crops (R, bins, C) out of several maps; the gradient goes to the maps alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, taps: Iterable[Taps], count: int, bins: int, *maps: Tensor) -> Tensor:
        """Sum chunk by chunk: what `taps` yields is never all in memory, unless a gradient will need it."""
        ctx.dtype = torch.promote_types(maps[0].dtype, torch.float32)  # half precision is summed in float32
        ctx.bins, ctx.shapes, ctx.taps = bins, [m.shape for m in maps], []
        crops = None
        for part in taps:
            if ctx.needs_input_grad[3 + part.map]:
                ctx.taps.append(part)
            rows, index = cells_read(maps[part.map], part.index, ctx.dtype)
            sums = bag_sum(index, rows, part.weight).view(-1, bins, rows.shape[1]).to(maps[0].dtype)
            if len(sums) == count and isinstance(part.rows, slice):
                return sums  # one part holds all, in order
            crops = sums.new_empty(count, *sums.shape[1:]) if crops is None else crops
            crops[part.rows] = sums
        return maps[0].new_empty(0, bins, maps[0].shape[1]) if crops is None else crops

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, crops: Tensor) -> tuple[Tensor | None, ...]:
        """One transposed sum a map."""
        rows = crops.flatten(0, 1).to(ctx.dtype).contiguous()  # (R * bins, C); a sum's gradient is expanded
        grads: list[Tensor | None] = []
        for i, (batch, channels, height, width) in enumerate(ctx.shapes):
            cells, taps = batch * height * width, [part for part in ctx.taps if part.map == i]
            table = gradient(taps, ctx.bins, rows, cells) if taps else rows.new_zeros(cells, channels)
            table = table.view(batch, height, width, channels).permute(0, 3, 1, 2).to(crops.dtype)
            grads.append(table if ctx.needs_input_grad[3 + i] else None)
        return None, None, None, *grads


def weighted_sums(taps: Iterable[Taps], count: int, bins: int, maps: Sequence[Tensor]) -> Tensor:
    """Crops (count, bins, C), each bin a weighted sum of cells; differentiable in the maps.

    Args:
        taps: what to read, in parts; every RoI 0..count - 1 is in exactly one.
        maps: (B, C, H, W) each, of one dtype. Half precision is summed in float32.
    """
    return WeightedSums.apply(taps, count, bins, *maps)
