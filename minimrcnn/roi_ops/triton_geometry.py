"""RoIAlign on a GPU, in Triton: the geometry. `triton_kernels.py` moves the data.

RoIAlign is a sum whose weights are products of one factor for each axis:

    out[roi, ph, pw, c]  =  sum over y, x of   A_y[ph, y] * A_x[pw, x] * F[y, x, c]

A[bin, cell] is how much a bin takes of a cell of the map. A bin has a few cells where it is not 0, all of
them near the bin, so A is never stored: `bin_weight` computes an entry where it is needed. Forward, each
bin asks for its cells; backward, each cell asks for its bins; both read the same A.

An axis of a RoI is a tuple (start, step, spacing, points, size), lengths in cells of the map:
    start    where the RoI begins          step   length of a bin       spacing   between sampling points
    points   sampling points in a bin      size   cells of the map along this axis
Cell i has its value at coordinate i. The helpers take single numbers and blocks of them alike.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def roi_axis(low, high, scale, size, BINS: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr):
    """One axis of a RoI that reaches from `low` to `high` in pixels of the picture."""
    if ALIGNED:
        # Pixel i covers [i, i+1) and has its value at its centre, i + .5. An inverted RoI stays inverted.
        start = low * scale - 0.5
        length = (high * scale - 0.5) - start
    else:
        start = low * scale
        length = tl.maximum(high * scale - start, 1.0)
    step = tl.div_rn(length, BINS * 1.0)  # correctly rounded; `/` is allowed to be 2 units off
    if SAMPLING > 0:
        points = tl.full((), SAMPLING, tl.int32)
        spacing = step * (1.0 / SAMPLING)
    else:
        points = tl.ceil(step).to(tl.int32)  # as many as the bin has cells; none in an inverted RoI
        spacing = tl.div_rn(step, tl.maximum(points, 1).to(tl.float32))
    return start, step, spacing, points, size


@triton.jit
def sample(bin, point, axis):
    """Where sampling point number `point` of a bin lies, and what it counts, 1 or 0.

    Up to one cell outside of the map a point takes the border's value, farther out it counts nothing.
    """
    start, step, spacing, _, size = axis
    where = start + bin * step + (point + 0.5) * spacing
    counts = tl.where((where >= -1.0) & (where <= size), 1.0, 0.0)
    return tl.minimum(tl.maximum(where, 0.0), size - 1.0), counts


@triton.jit
def bin_weight(bin, cell, axis, SAMPLING: tl.constexpr):
    """A[bin, cell]: each point takes 1 of a cell it lies on, 0 of one a cell away; the bin's average."""
    where, counts = sample(bin, 0, axis)
    total = counts * tl.maximum(1.0 - tl.abs(where - cell), 0.0)
    if SAMPLING > 0:
        for point in tl.static_range(1, SAMPLING):
            where, counts = sample(bin, point, axis)
            total += counts * tl.maximum(1.0 - tl.abs(where - cell), 0.0)
        total *= 1.0 / SAMPLING
    else:
        point = 1
        while point < axis[3]:
            where, counts = sample(bin, point, axis)
            total += counts * tl.maximum(1.0 - tl.abs(where - cell), 0.0)
            point += 1
        total = tl.where(axis[3] > 0, tl.div_rn(total, tl.maximum(axis[3], 1).to(tl.float32)), 0.0)
    return total


@triton.jit
def cell_of_bin(bin, tap, axis, SAMPLING: tl.constexpr):
    """Which cell a bin reads at its tap number `tap`, two taps for each point, and with what weight.

    Neighbouring points often share a cell. The first of their taps takes it, with the whole of A, and the
    others get weight 0, for which nothing is read: of 16 taps a bin some 9 are left at 7x7, 6 at 14x14.
    """
    where, _ = sample(bin, tap // 2, axis)
    before, _ = sample(bin, tap // 2 - 1, axis)
    cell = tl.floor(where) + tap % 2
    taken = (tap > 1) & ((cell == tl.floor(before)) | (cell == tl.floor(before) + 1.0))
    return cell.to(tl.int32), tl.where(taken, 0.0, bin_weight(bin, cell, axis, SAMPLING))


@triton.jit
def cells_of_bin(bin, axis, SAMPLING: tl.constexpr):
    """All taps of a bin: a tuple of (cell, weight)."""
    taps = ()
    for tap in tl.static_range(2 * SAMPLING):
        taps = taps + (cell_of_bin(bin, tap, axis, SAMPLING),)  # noqa: RUF005
    return taps


@triton.jit
def bins_of_cell(cell, axis, BINS: tl.constexpr):
    """First and last bin that may have a point within one cell of `cell`; A says whether it has."""
    start, step, _, _, _ = axis
    bins_a_cell = 1.0 / tl.where(tl.abs(step) < 1e-20, 1e-20, step)  # an empty RoI has all bins in one place
    one, other = (cell - 1.0 - start) * bins_a_cell, (cell + 1.0 - start) * bins_a_cell
    first = tl.maximum(tl.floor(tl.minimum(one, other)), 0.0)
    last = tl.minimum(tl.floor(tl.maximum(one, other)), BINS - 1.0)
    return tl.minimum(first, BINS).to(tl.int32), tl.maximum(last, -1.0).to(tl.int32)


@triton.jit
def cells_of_roi(axis, BINS: tl.constexpr):
    """First and last cell that a RoI may read along an axis."""
    one, _ = sample(0, 0, axis)
    other, _ = sample(BINS - 1, axis[3] - 1, axis)
    first = tl.floor(tl.minimum(one, other))
    last = tl.minimum(tl.floor(tl.maximum(one, other)) + 1.0, axis[4] - 1.0)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def reaches(axis, low, high, BINS: tl.constexpr):
    """Whether a RoI may read one of the cells from `low` to `high`."""
    first, last = cells_of_roi(axis, BINS)
    return (first <= high) & (last >= low)


@triton.jit
def axes_of_rois(
    boxes, roi, mask, scale, height, width,
    BINS_Y: tl.constexpr, BINS_X: tl.constexpr, SAMPLING: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Both axes of one RoI, or of a block of RoIs, out of boxes (R, 4)."""
    x1, y1 = tl.load(boxes + 4 * roi, mask), tl.load(boxes + 4 * roi + 1, mask)
    x2, y2 = tl.load(boxes + 4 * roi + 2, mask), tl.load(boxes + 4 * roi + 3, mask)
    y_axis = roi_axis(y1, y2, scale, height, BINS_Y, SAMPLING, ALIGNED)
    x_axis = roi_axis(x1, x2, scale, width, BINS_X, SAMPLING, ALIGNED)
    return y_axis, x_axis


@triton.jit
def of_level(level, values):
    """The one of four values that belongs to a level: three selects, no branch."""
    coarse = tl.where(level == 2, values[2], values[3])
    return tl.where(level == 0, values[0], tl.where(level == 1, values[1], coarse))
