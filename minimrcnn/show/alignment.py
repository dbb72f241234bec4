"""How far a crop lies from where it was asked for, in pixels of the picture: measured, not derived.

A map is made whose every cell holds its own place in the picture, f(x, y) = x. Whatever a bin of the crop
then holds is the place that the bin was read from; the difference to the bin's own middle is its error.
Max pooling takes the larger end of a bin, so the same is done on -x: half the difference of both crops is
the middle of what was read, and for an operation that averages it is the crop itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minimrcnn.roi_ops.checks import size_pair
from minimrcnn.roi_ops.named import operation
from minimrcnn.show.reading import TITLES, check_roi, check_stride

MARGIN = 4  # cells around the RoIs of a measurement without borders


@dataclass(frozen=True)
class AlignmentError:
    """How far a crop lies from its RoI, in pixels of the picture.

    Attributes:
        x, y: mean over the bins; positive where the crop was read too far right, too far down.
        worst: the distance of the bin that is farthest off.
        by_bin: (2, P, P) the x and y errors of every bin. NaN where a bin reaches so far out of the picture
            that it does not read, or does not only read, what is in it; the other numbers leave it out.
    """

    x: float
    y: float
    worst: float
    by_bin: Tensor

    def __str__(self) -> str:
        if self.x != self.x:
            return "no bin reads the picture"
        x, y, worst = (round(value, 2) for value in (self.x, self.y, self.worst))
        return f"x {_signed(x)}, y {_signed(y)}, worst {worst:.2f}"


def alignment_error(
    op: str | Callable[..., Tensor],
    roi: Sequence[float],
    *,
    output_size: int | tuple[int, int] = 7,
    stride: int = 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
    size: tuple[int, int] | None = None,
) -> AlignmentError:
    """Where the bins of one crop were read from, against where they belong.

    Cell i of the map covers the pixels [i * stride, (i + 1) * stride) and has its value in their middle, as
    in a map of means over stride x stride pixels. Against that, RoIAlign is off by nothing;
    `aligned=False` is off by half a cell, always the same; RoIPool is off by half a cell, and by up to
    another half to either side as its RoI is rounded.

    Args:
        op: "roi_pool", "roi_warp", "roi_align", or a function (features, rois, output_size, spatial_scale)
            -> crops with the shapes of `roi_ops.roi_align`.
        roi: (x1, y1, x2, y2), pixels of the picture.
        output_size: bins, of a side or (height, width). stride: pixels a cell.
        sampling_ratio, aligned: of the operations that have them.
        size: (height, width) of the map in cells, to see what its border does; None measures far from it.

    Raises:
        ValueError: an unknown operation, a RoI that is not finite or inside out, no bins, no stride.
    """
    rois = torch.tensor([check_roi(roi)])  # (1, 4)
    settings = size_pair(output_size), check_stride(stride), sampling_ratio, aligned
    by_bin = bin_errors(op, rois, *settings, size)[0]  # (2, P, P)
    return summarise(by_bin)


def alignment_curve(
    op: str | Callable[..., Tensor],
    roi: Sequence[float],
    shifts: Tensor,
    *,
    output_size: int | tuple[int, int] = 7,
    stride: int = 16,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """The error in x (its mean over the bins) of a RoI that is pushed to the right: (N,) pixels.

    shifts: (N,) pixels, any sign. The rest as in `alignment_error`, far from every border.
    """
    box = torch.tensor(check_roi(roi))
    rois = box + shifts[:, None].to(box) * torch.tensor([1.0, 0.0, 1.0, 0.0])  # (N, 4)
    settings = size_pair(output_size), check_stride(stride), sampling_ratio, aligned
    return bin_errors(op, rois, *settings, None)[:, 0].mean(dim=(1, 2))


def bin_errors(
    op: str | Callable[..., Tensor],
    rois: Tensor,
    output_size: tuple[int, int],
    stride: int,
    sampling_ratio: int,
    aligned: bool,
    size: tuple[int, int] | None,
) -> Tensor:
    """The errors in x and y of every bin of every RoI: (R, 2, P, P), pixels; NaN as in AlignmentError.

    rois: (R, 4) float32.
    """
    if size is None:
        # All RoIs moved by whole cells to a place with room around: that changes no rounding.
        origin = rois[:, :2].amin(dim=0).div(stride).floor() - MARGIN
        rois = rois - (origin * stride).repeat(2)
        width, height = (int(n) for n in rois[:, 2:].amax(dim=0).div(stride).ceil() + MARGIN)
    else:
        height, width = size
    features = places(height, width, stride)  # (1, 5, H, W)
    return read_off(apply(op, features, rois, output_size, stride, sampling_ratio, aligned), rois)


def places(height: int, width: int, stride: int) -> Tensor:
    """The map that is measured with, (1, 5, H, W): x, -x, y and -y of each cell's middle, pixels, and 1."""
    x = (torch.arange(width) + 0.5) * stride
    y = (torch.arange(height) + 0.5) * stride
    x, y = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([x, -x, y, -y, torch.ones_like(x)])[None]


def read_off(crops: Tensor, rois: Tensor) -> Tensor:
    """The errors (R, 2, P, P) in crops (R, 5, P, P) of `places`; rois: (R, 4)."""
    read = (crops[:, [0, 2]] - crops[:, [1, 3]]) / 2  # (R, 2, P, P) where each bin was read
    rows, columns = ((torch.arange(bins) + 0.5) / bins for bins in crops.shape[2:])
    start, length = rois[:, :2], rois[:, 2:] - rois[:, :2]
    across = start[:, :1] + columns * length[:, :1]  # (R, P) where each bin belongs
    down = start[:, 1:] + rows * length[:, 1:]
    asked = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=1)
    whole = (crops[:, 4:] - 1).abs() < 1e-4  # less than 1 where a part of the bin counted as zero
    return torch.where(whole, read - asked, torch.nan)


def apply(
    op: str | Callable[..., Tensor],
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    stride: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Crops (R, C, P, P) of one map (1, C, H, W) by an operation's name, or by a function of one's own."""
    rows = torch.cat([rois.new_zeros(len(rois), 1), rois], dim=1)  # (R, 5)
    square = output_size[0] if output_size[0] == output_size[1] else output_size
    options = {} if callable(op) or op == "roi_pool" else {"sampling_ratio": sampling_ratio}
    if op == "roi_align":
        options["aligned"] = aligned
    run = op if callable(op) else operation(op)
    return run(features, rows, square, 1 / stride, **options)


def summarise(by_bin: Tensor) -> AlignmentError:
    """The means and the worst bin of (2, P, P) errors; NaN where no bin was read."""
    x, y = (float(axis) for axis in by_bin.nanmean(dim=(1, 2)))
    distances = by_bin.square().sum(dim=0).sqrt()
    distances = distances[~distances.isnan()]
    return AlignmentError(x, y, float(distances.max()) if len(distances) else torch.nan, by_bin)


def summary_line(errors: dict[str, AlignmentError]) -> str:
    """All operations' errors in a line."""
    parts = [f"{TITLES[name]} {error}" for name, error in errors.items()]
    return "misalignment in pixels of the picture: " + "; ".join(parts)


def _signed(value: float) -> str:
    return f"{value:+.2f}" if value else "0.00"  # neither +0.00 nor -0.00
