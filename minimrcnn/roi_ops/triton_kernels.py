"""RoIAlign on a GPU, in Triton: the kernels. `triton_geometry.py` says what they compute.

What the hardware wants, and how it gets it:
- Channels are the last, contiguous axis of every map. A thread loads 16 bytes at once (128 bits, the widest
  load there is), and the threads of a warp load bytes that follow one another.
- One launch serves all levels of the pyramid: each program picks the map of its RoI's level.
- Whatever the maps hold, numbers in registers are float32.
- A program computes a few thousand numbers, so that the running sums stay in registers, and there are
  thousands of programs, so that some can compute while others wait for memory.
- Every thread of a program works out the geometry for itself. Few threads a program, with much to sum each,
  keep that cheap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minimrcnn.roi_ops.triton_geometry import (
    axes_of_rois,
    bin_weight,
    bins_of_cell,
    cell_of_bin,
    cells_of_bin,
    cells_of_roi,
    of_level,
    reaches,
)

# Triton compiles a kernel anew for sizes that are 1 or multiples of 16. Pictures come in hundreds of sizes.
SIZES = [f"{side}{level}" for side in ("height", "width") for level in range(4)] + ["pictures", "rois"]

# ----------------------------------------------------------------------------------------------------
# Forward: a program computes some rows of bins of one RoI, for one block of channels. The cells that it
# reads lie close together, and the next row of bins reads half of them again, from the L1 cache.
# ----------------------------------------------------------------------------------------------------


@triton.jit
def add_cells(total, row, weight_y, x, weight_x, channel, CHANNELS: tl.constexpr):
    """Add one cell, times its weight, to each bin of a block: total (BINS, CHANNELS)."""
    weight = weight_y * weight_x  # (BINS,)
    # A load with a false mask is switched off: no branch, and no traffic.
    mask = (weight != 0.0)[:, None] & (channel < CHANNELS)[None, :]
    cells = tl.load(row + x[:, None] * CHANNELS + channel[None, :], mask=mask, other=0.0)
    return total + weight[:, None] * cells.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    map0, map1, map2, map3, height0, height1, height2, height3, width0, width1, width2, width3,
    scale0, scale1, scale2, scale3, boxes, batch, levels, out,
    CHANNELS: tl.constexpr, BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK_BINS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out (R, BINS_Y, BINS_X, CHANNELS) from maps (B, height, width, CHANNELS).

    Grid: (R, blocks of channels, blocks of ROWS rows of bins).
    """
    roi = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    level = tl.load(levels + roi)
    height = of_level(level, (height0, height1, height2, height3))
    width = of_level(level, (width0, width1, width2, width3))
    scale = of_level(level, (scale0, scale1, scale2, scale3))
    y_axis, x_axis = axes_of_rois(boxes, roi, None, scale, height, width, BINS_Y, BINS_X, SAMPLING, ALIGNED)
    row_length = width * CHANNELS
    picture = of_level(level, (map0, map1, map2, map3))
    picture += tl.load(batch + roi).to(tl.int64) * height * row_length
    crop = out + roi * (BINS_Y * BINS_X * CHANNELS)
    for first in range(0, BINS_X, BLOCK_BINS):
        pw = first + tl.arange(0, BLOCK_BINS)
        x_taps = cells_of_bin(pw, x_axis, SAMPLING)  # the same for every row of bins
        for row_of_bins in range(ROWS):
            ph = tl.program_id(2) * ROWS + row_of_bins
            total = tl.zeros([BLOCK_BINS, BLOCK_CHANNELS], tl.float32)
            if SAMPLING > 0:
                y_taps = cells_of_bin(ph, y_axis, SAMPLING)
                for tap_y in tl.static_range(2 * SAMPLING):
                    y, weight_y = y_taps[tap_y]
                    if weight_y != 0.0:  # one number for the whole program: its threads branch together
                        row = picture + y.to(tl.int64) * row_length  # a map may exceed 2**31 numbers
                        for tap_x in tl.static_range(2 * SAMPLING):
                            x, weight_x = x_taps[tap_x]
                            total = add_cells(total, row, weight_y, x, weight_x, channel, CHANNELS)
            else:
                tap_y = 0
                while tap_y < 2 * y_axis[3]:
                    y, weight_y = cell_of_bin(ph, tap_y, y_axis, SAMPLING)
                    row = picture + y.to(tl.int64) * row_length
                    tap_x = 0
                    while tap_x < 2 * x_axis[3]:
                        x, weight_x = cell_of_bin(pw, tap_x, x_axis, SAMPLING)
                        total = add_cells(total, row, weight_y, x, weight_x, channel, CHANNELS)
                        tap_x += 1
                    tap_y += 1
            place = crop + (ph * BINS_X + pw)[:, None] * CHANNELS + channel[None, :]
            mask = ((pw < BINS_X) & (ph < BINS_Y))[:, None] & (channel < CHANNELS)[None, :]
            tl.store(place, total.to(out.dtype.element_ty), mask=mask)


# ----------------------------------------------------------------------------------------------------
# Backward: every cell asks for its bins. What one RoI sends to a row of cells is summed in registers, and
# the two ways differ in what happens next: `scatter` adds it to the map in memory, atomically, since
# another RoI may be adding to the same cell; `gather` goes on with the next RoI and writes the cell once.
# ----------------------------------------------------------------------------------------------------


@triton.jit
def add_bins(
    total, crop, y, x, y_axis, x_axis, channel,
    CHANNELS: tl.constexpr, BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr,
):  # fmt: skip
    """Add to cells x (CELLS,) of row y what the bins of one RoI send back.

    total (CELLS, CHANNELS) grows by the sum over bins of A_y[ph, y] * A_x[pw, x] * gradient[ph, pw]; crop
    points to the gradient of the RoI's bins (BINS_Y, BINS_X, CHANNELS).
    """
    first_y, last_y = bins_of_cell(y, y_axis, BINS_Y)
    first_x, _ = bins_of_cell(x, x_axis, BINS_X)
    # Bins within two cells: one or two where a bin is larger than that, all of them in a RoI like a dot.
    bins_in_two_cells = tl.minimum(2.0 / tl.maximum(tl.abs(x_axis[1]), 1e-3), BINS_X).to(tl.int32) + 2
    nth = 0
    while nth < bins_in_two_cells:
        pw = first_x + nth
        weight_x = tl.where(pw < BINS_X, bin_weight(pw, x, x_axis, SAMPLING), 0.0)
        ph = first_y
        while ph <= last_y:
            weight = bin_weight(ph, y, y_axis, SAMPLING) * weight_x
            place = crop + (ph * BINS_X + pw)[:, None] * CHANNELS + channel[None, :]
            mask = (weight != 0.0)[:, None] & (channel < CHANNELS)[None, :]
            total += weight[:, None] * tl.load(place, mask=mask, other=0.0).to(tl.float32)
            ph += 1
        nth += 1
    return total


@triton.jit(do_not_specialize=SIZES)
def scatter_kernel(
    map0, map1, map2, map3, height0, height1, height2, height3, width0, width1, width2, width3,
    scale0, scale1, scale2, scale3, boxes, batch, levels, gradient,
    CHANNELS: tl.constexpr, BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr, CELLS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """Add to maps (B, height, width, CHANNELS) float32 from gradient (R, BINS_Y, BINS_X, CHANNELS).

    Grid: (R, blocks of channels, STRIPS); each program takes every STRIPS-th row of cells of its RoI.
    """
    roi = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    level = tl.load(levels + roi)
    height = of_level(level, (height0, height1, height2, height3))
    width = of_level(level, (width0, width1, width2, width3))
    scale = of_level(level, (scale0, scale1, scale2, scale3))
    y_axis, x_axis = axes_of_rois(boxes, roi, None, scale, height, width, BINS_Y, BINS_X, SAMPLING, ALIGNED)
    row_length = width * CHANNELS
    picture = of_level(level, (map0, map1, map2, map3))
    picture += tl.load(batch + roi).to(tl.int64) * height * row_length
    crop = gradient + roi * (BINS_Y * BINS_X * CHANNELS)
    first_y, last_y = cells_of_roi(y_axis, BINS_Y)
    first_x, last_x = cells_of_roi(x_axis, BINS_X)
    y = first_y + tl.program_id(2)
    while y <= last_y:
        row = picture + y.to(tl.int64) * row_length
        left = first_x
        while left <= last_x:
            x = left + tl.arange(0, CELLS)
            total = tl.zeros([CELLS, BLOCK_CHANNELS], tl.float32)
            total = add_bins(total, crop, y, x, y_axis, x_axis, channel, CHANNELS, BINS_Y, BINS_X, SAMPLING)
            mask = (x <= last_x)[:, None] & (channel < CHANNELS)[None, :]
            # "relaxed": these additions need no order among themselves. The default order puts a memory
            # barrier around each. Nobody reads the sum here, so the hardware may send it off and go on
            # (a "reduction", RED), four numbers at a time where the GPU can (from sm_90 on).
            tl.atomic_add(row + x[:, None] * CHANNELS + channel[None, :], total, mask=mask, sem="relaxed")
            left += CELLS
        y += STRIPS


@triton.jit
def tile_place(tile, pictures, heights, widths, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Level, picture, first row and first column of a tile; tiles are numbered level by level."""
    level = tl.full((), 0, tl.int32)
    for fine in tl.static_range(3):
        count = pictures * tl.cdiv(heights[fine], TILE_Y) * tl.cdiv(widths[fine], TILE_X)
        beyond = (level == fine) & (tile >= count)
        tile = tl.where(beyond, tile - count, tile)
        level = tl.where(beyond, fine + 1, level)
    across = tl.cdiv(of_level(level, widths), TILE_X)
    down = tl.cdiv(of_level(level, heights), TILE_Y)
    return level, tile // (across * down), tile // across % down * TILE_Y, tile % across * TILE_X


@triton.jit(do_not_specialize=SIZES)
def list_kernel(
    height0, height1, height2, height3, width0, width1, width2, width3,
    scale0, scale1, scale2, scale3, pictures, boxes, batch, levels, rois, lists, counts,
    BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK_ROIS: tl.constexpr,
):  # fmt: skip
    """Which RoIs reach into each tile of cells: lists (tiles, rois) int32 in rising order, counts (tiles,).

    Grid: (tiles,). A program looks at all RoIs, a block at a time, and keeps those of its tile.
    """
    tile = tl.program_id(0)
    heights, widths = (height0, height1, height2, height3), (width0, width1, width2, width3)
    level, picture, top, left = tile_place(tile, pictures, heights, widths, TILE_Y, TILE_X)
    height, width = of_level(level, heights), of_level(level, widths)
    scale = of_level(level, (scale0, scale1, scale2, scale3))
    list_of_tile = lists + tile.to(tl.int64) * rois
    kept = tl.full((), 0, tl.int32)
    start = 0
    while start < rois:
        roi = start + tl.arange(0, BLOCK_ROIS)
        mine = (roi < rois) & (tl.load(batch + roi, mask=roi < rois, other=-1) == picture)
        mine = mine & (tl.load(levels + roi, mask=roi < rois, other=-1) == level)
        if tl.max(mine.to(tl.int32), axis=0) > 0:  # RoIs of one picture mostly follow one another
            y_axis, x_axis = axes_of_rois(
                boxes, roi, mine, scale, height, width, BINS_Y, BINS_X, SAMPLING, ALIGNED
            )
            mine = mine & reaches(y_axis, top, top + TILE_Y - 1, BINS_Y)
            mine = mine & reaches(x_axis, left, left + TILE_X - 1, BINS_X)
            rank = tl.cumsum(mine.to(tl.int32), axis=0)  # the first that is kept gets 1
            tl.store(list_of_tile + kept + rank - 1, roi, mask=mine)
            kept += tl.max(rank, axis=0)
        start += BLOCK_ROIS
    tl.store(counts + tile, kept)


@triton.jit(do_not_specialize=SIZES)
def gather_kernel(
    map0, map1, map2, map3, height0, height1, height2, height3, width0, width1, width2, width3,
    scale0, scale1, scale2, scale3, pictures, boxes, rois, lists, counts, gradient,
    CHANNELS: tl.constexpr, BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr,
    ALIGNED: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, CELLS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write maps (B, height, width, CHANNELS) whole, from gradient (R, BINS_Y, BINS_X, CHANNELS).

    Grid: (pieces of all tiles, blocks of channels). A program owns a piece: CELLS cells of one row. It sums
    its RoIs in the order of the list, always the same, and writes once: no atomics, no memory to be cleared.
    """
    # Coarse levels first: their tiles have the longest lists, and what is long is best begun early.
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    pieces = TILE_X // CELLS  # in a row of a tile
    tile = number // (TILE_Y * pieces)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    heights, widths = (height0, height1, height2, height3), (width0, width1, width2, width3)
    level, picture, top, left = tile_place(tile, pictures, heights, widths, TILE_Y, TILE_X)
    height, width = of_level(level, heights), of_level(level, widths)
    scale = of_level(level, (scale0, scale1, scale2, scale3))
    y = top + number // pieces % TILE_Y
    left += number % pieces * CELLS
    x = left + tl.arange(0, CELLS)
    if (y < height) & (left < width):  # the last tiles of a map may reach over it
        total = tl.zeros([CELLS, BLOCK_CHANNELS], tl.float32)
        list_of_tile = lists + tile.to(tl.int64) * rois
        count = tl.load(counts + tile)
        entry = 0
        while entry < count:
            roi = tl.load(list_of_tile + entry).to(tl.int64)
            y_axis, x_axis = axes_of_rois(
                boxes, roi, None, scale, height, width, BINS_Y, BINS_X, SAMPLING, ALIGNED
            )
            if reaches(y_axis, y, y, BINS_Y) & reaches(x_axis, left, left + CELLS - 1, BINS_X):
                crop = gradient + roi * (BINS_Y * BINS_X * CHANNELS)
                total = add_bins(
                    total, crop, y, x, y_axis, x_axis, channel, CHANNELS, BINS_Y, BINS_X, SAMPLING
                )
            entry += 1
        row = of_level(level, (map0, map1, map2, map3))
        row += (picture.to(tl.int64) * height + y) * (width * CHANNELS)
        mask = (x < width)[:, None] & (channel < CHANNELS)[None, :]
        tl.store(row + x[:, None] * CHANNELS + channel[None, :], total.to(map0.dtype.element_ty), mask=mask)
