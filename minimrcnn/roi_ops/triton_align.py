"""RoIAlign on a GPU, in Triton: from tensors to launches, as operators that torch.compile and autograd know.

The kernels are in `triton_kernels.py`, what they compute is in `triton_geometry.py`. With
TRITON_INTERPRET=1 in the environment when Python starts they run on the CPU, one program after the other:
slow, and the way to test and to debug them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from minimrcnn.roi_ops.checks import size_pair
from minimrcnn.roi_ops.rois import one_of
from minimrcnn.roi_ops.triton_kernels import forward_kernel, gather_kernel, list_kernel, scatter_kernel

INTERPRETED = not isinstance(forward_kernel, triton.runtime.JITFunction)
LEVELS = 4  # maps a kernel takes: P2 to P5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKWARDS = ("auto", "scatter", "gather")

# How the work is cut into programs; `python -m benchmarks.roi_align --tune` looks for better numbers.
#   channels  that a program computes                numbers   of a sum that each of its threads keeps
#   bins      of one row that are summed at once     rows      of bins, one after the other
#   cells     of one row that are summed at once     strips    programs that share a RoI
#   tile      rows and columns of cells that share   rois      that are looked at at once
#             a list of RoIs                         warps     of 32 threads in a program
TUNING = {
    "forward": {"channels": 128, "bins": 8, "rows": 7, "numbers": 8},
    "scatter": {"channels": 256, "cells": 4, "strips": 4, "warps": 1},
    "gather": {"channels": 256, "cells": 4, "tile": (8, 16), "warps": 1},
    "list": {"rois": 512, "warps": 4},
}

if INTERPRETED:
    # torch.compile could not look into an interpreted kernel: it gets an operator that it calls as it is.
    register = torch.library.custom_op

    def wrap_triton(kernel):
        """Nothing to wrap."""
        return kernel

else:
    from torch.library import triton_op as register
    from torch.library import wrap_triton


def pyramid_roi_align_triton(
    features: list[Tensor],
    boxes: Tensor,
    batch: Tensor,
    levels: Tensor,
    strides: tuple[float, ...],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    backward: str = "auto",
) -> Tensor:
    """RoIAlign of all levels of a pyramid in one launch; the same numbers as torchvision.ops.roi_align.

    Args:
        features: one (B, C, H, W) a level, at most 4, float32, float16 or bfloat16, on a GPU. Maps in
            channels_last are read as they lie. Any other layout costs one copy of the map: of 82.7 MB in
            float32 for P2 to P5 of an 800 x 1216 picture, read once and written once.
        boxes: (R, 4) xyxy in pixels of the resized picture. batch, levels: (R,) int64. Their values are not
            looked at on a GPU: an index out of range reads, and writes, memory that is not the map's.
        strides: pixels a cell of each level.
        output_size: bins along each side, or (height, width).
        sampling_ratio: points along each side of a bin; 0 or less takes as many as the bin has cells.
        aligned: subtract the half pixel (detectron2) or not (the original, torchvision's models).
        backward: "scatter" adds with atomics, in an order that changes from run to run; "gather" is
            the same bit for bit in every run, and needs 4 bytes a RoI and tile of 8 x 16 cells; "auto" is
            gather where torch.use_deterministic_algorithms(True) asks for it, else scatter.

    Returns:
        (R, C, height, width) in channels_last and in the dtype of the features; sums are kept in float32.
        Differentiable in the features, once. A cell whose weight is 0 is not read: where torchvision
        makes a NaN out of 0 times infinity, this does not.

    Raises:
        ValueError: more than 4 levels, another dtype or device, or an unknown way backward.
    """
    one_of(backward, BACKWARDS, "backward")
    if not 1 <= len(features) <= LEVELS or len(features) != len(strides):
        raise ValueError(
            f"features: {len(features)} levels, strides: {len(strides)}; want one each of 1 to 4"
        )
    first = features[0]
    if first.dtype not in DTYPES:
        raise ValueError(f"features: dtype {first.dtype}; the Triton kernel takes float32, float16, bfloat16")
    if not (first.is_cuda or (INTERPRETED and first.device.type == "cpu")):
        raise ValueError(
            f"features: on {first.device}; the Triton kernel runs on CUDA: move them with .cuda(), or choose "
            "implementation='pytorch' (or debug it on the CPU: start Python with TRITON_INTERPRET=1)"
        )
    if any(
        (f.dtype, f.device, f.shape[:2]) != (first.dtype, first.device, first.shape[:2]) for f in features
    ):
        raise ValueError("features: levels differ in dtype, device, pictures or channels")
    if backward == "auto":
        backward = "gather" if torch.are_deterministic_algorithms_enabled() else "scatter"
    return roi_align_op(
        [f.contiguous(memory_format=torch.channels_last) for f in features],
        boxes.float().contiguous(),
        batch.to(torch.int64).contiguous(),
        levels.to(torch.int64).contiguous(),
        [1.0 / s for s in strides],
        list(size_pair(output_size)),
        max(sampling_ratio, 0),
        aligned,
        backward,
    )


def per_level(maps: list[Tensor], sizes: list[int], scales: list[float]) -> dict[str, object]:
    """The kernels' arguments that come once a level: a pyramid of fewer is filled up with empty levels."""
    missing = LEVELS - len(maps)
    heights, widths = sizes[0::2] + [0] * missing, sizes[1::2] + [0] * missing
    arguments = {f"map{i}": m for i, m in enumerate(maps + maps[:1] * missing)}
    arguments |= {f"height{i}": h for i, h in enumerate(heights)}
    arguments |= {f"width{i}": w for i, w in enumerate(widths)}
    return arguments | {f"scale{i}": s for i, s in enumerate(scales + [1.0] * missing)}


def block(channels: int, most: int) -> int:
    """Channels of a program: a power of two, as all blocks in Triton are."""
    return min(triton.next_power_of_2(channels), most)


def forward(
    features: list[Tensor],
    boxes: Tensor,
    batch: Tensor,
    levels: Tensor,
    scales: list[float],
    output_size: list[int],
    sampling_ratio: int,
    aligned: bool,
    method: str,
) -> Tensor:
    """The crops (R, C, *output_size) in channels_last. `method` is for the gradient alone."""
    tuning = TUNING["forward"]
    channels, (bins_y, bins_x) = features[0].shape[1], output_size
    out = empty_channels_last(features[0], len(boxes), channels, bins_y, bins_x)
    if out.numel() == 0:
        return out
    block_channels, block_bins = block(channels, tuning["channels"]), block(bins_x, tuning["bins"])
    rows = min(tuning["rows"], bins_y)
    warps = max(block_bins * block_channels // (32 * tuning["numbers"]), 1)
    grid = (len(boxes), triton.cdiv(channels, block_channels), triton.cdiv(bins_y, rows))
    wrap_triton(forward_kernel)[grid](
        **per_level(features, [n for f in features for n in f.shape[2:]], scales),
        boxes=boxes,
        batch=batch,
        levels=levels,
        out=out,
        CHANNELS=channels,
        BINS_Y=bins_y,
        BINS_X=bins_x,
        SAMPLING=sampling_ratio,
        ALIGNED=aligned,
        BLOCK_BINS=block_bins,
        BLOCK_CHANNELS=block_channels,
        ROWS=rows,
        num_warps=warps,
    )
    return out


def backward(
    gradient: Tensor,
    boxes: Tensor,
    batch: Tensor,
    levels: Tensor,
    scales: list[float],
    pictures: int,
    sizes: list[int],
    sampling_ratio: int,
    aligned: bool,
    method: str,
) -> list[Tensor]:
    """The maps' gradients (B, C, H, W) in channels_last from that of the crops (R, C, height, width).

    sizes: height and width of each level, one after the other; pictures: B. method: "scatter" or "gather".
    """
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    if gradient.numel() == 0:
        return [map_.zero_() for map_ in empty_maps(gradient, pictures, sizes)]
    bins_y, bins_x = gradient.shape[2:]
    rois = {"boxes": boxes, "batch": batch, "levels": levels}
    options = {"BINS_Y": bins_y, "BINS_X": bins_x, "SAMPLING": sampling_ratio, "ALIGNED": aligned}
    if method == "scatter":
        return scatter(gradient, rois, scales, pictures, sizes, options)
    return gather(gradient, rois, scales, pictures, sizes, options)


def scatter(
    gradient: Tensor,
    rois: dict[str, Tensor],
    scales: list[float],
    pictures: int,
    sizes: list[int],
    options: dict[str, int],
) -> list[Tensor]:
    """Each RoI adds to the maps, in float32 until the last is in: bfloat16 would lose small terms."""
    tuning, channels = TUNING["scatter"], gradient.shape[1]
    maps = [map_.zero_() for map_ in empty_maps(gradient, pictures, sizes, torch.float32)]
    block_channels = block(channels, tuning["channels"])
    grid = (len(gradient), triton.cdiv(channels, block_channels), tuning["strips"])
    wrap_triton(scatter_kernel)[grid](
        **per_level(maps, sizes, scales),
        **rois,
        **options,
        gradient=gradient,
        CHANNELS=channels,
        CELLS=tuning["cells"],
        BLOCK_CHANNELS=block_channels,
        STRIPS=tuning["strips"],
        num_warps=tuning["warps"],
    )
    return [map_.to(gradient.dtype) for map_ in maps]


def gather(
    gradient: Tensor,
    rois: dict[str, Tensor],
    scales: list[float],
    pictures: int,
    sizes: list[int],
    options: dict[str, int],
) -> list[Tensor]:
    """Each cell sums its RoIs: first a list of RoIs for each tile of cells, then the sums."""
    tuning, channels, count = TUNING["gather"], gradient.shape[1], len(gradient)
    maps = empty_maps(gradient, pictures, sizes)
    tile_y, tile_x = tuning["tile"]
    sides = zip(sizes[0::2], sizes[1::2], strict=True)
    tiles = sum(pictures * triton.cdiv(h, tile_y) * triton.cdiv(w, tile_x) for h, w in sides)
    levels = per_level(maps, sizes, scales)
    shared = options | {
        "pictures": pictures,
        "rois": count,
        "lists": torch.empty(tiles, count, dtype=torch.int32, device=gradient.device),
        "counts": torch.empty(tiles, dtype=torch.int32, device=gradient.device),
        "TILE_Y": tile_y,
        "TILE_X": tile_x,
    }
    wrap_triton(list_kernel)[(tiles,)](
        **{name: value for name, value in levels.items() if not name.startswith("map")},
        **rois,
        **shared,
        BLOCK_ROIS=block(count, TUNING["list"]["rois"]),
        num_warps=TUNING["list"]["warps"],
    )
    block_channels = block(channels, tuning["channels"])
    pieces = tiles * tile_y * (tile_x // tuning["cells"])
    wrap_triton(gather_kernel)[(pieces, triton.cdiv(channels, block_channels))](
        **levels,
        **shared,
        boxes=rois["boxes"],
        gradient=gradient,
        CHANNELS=channels,
        CELLS=tuning["cells"],
        BLOCK_CHANNELS=block_channels,
        num_warps=tuning["warps"],
    )
    return maps


def empty_channels_last(like: Tensor, *shape: int) -> Tensor:
    """(N, C, H, W) of the dtype and device of `like`, not filled in."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def empty_maps(
    like: Tensor, pictures: int, sizes: list[int], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """One (B, C, H, W) a level with the channels and device of the crops' gradient, not filled in."""
    return [
        torch.empty(
            (pictures, like.shape[1], h, w),
            dtype=dtype or like.dtype,
            device=like.device,
            memory_format=torch.channels_last,
        )
        for h, w in zip(sizes[0::2], sizes[1::2], strict=True)
    ]


# ----------------------------------------------------------------------------------------------------
# The operators: what torch.compile, autograd and torch.library.opcheck know of the functions above.
# ----------------------------------------------------------------------------------------------------

roi_align_op = register("minimrcnn::roi_align", mutates_args=())(forward)
roi_align_backward_op = register("minimrcnn::roi_align_backward", mutates_args=())(backward)


@roi_align_op.register_fake
def fake_forward(features, boxes, batch, levels, scales, output_size, *options) -> Tensor:
    """What `forward` returns, as a shape."""
    return empty_channels_last(features[0], len(boxes), features[0].shape[1], *output_size)


@roi_align_backward_op.register_fake
def fake_backward(gradient, boxes, batch, levels, scales, pictures, sizes, *options) -> list[Tensor]:
    """What `backward` returns, as shapes."""
    return empty_maps(gradient, pictures, sizes)


def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    """Keep for the gradient what it needs: where the RoIs lie, and no feature."""
    features, boxes, batch, levels, ctx.scales, _, ctx.sampling_ratio, ctx.aligned, ctx.method = inputs
    ctx.save_for_backward(boxes, batch, levels)
    ctx.pictures, ctx.sizes = features[0].shape[0], [n for f in features for n in f.shape[2:]]


def differentiate(ctx, gradient: Tensor) -> tuple:
    """The gradient of `roi_align_op` in each of its arguments: only the features have one."""
    options = ctx.scales, ctx.pictures, ctx.sizes, ctx.sampling_ratio, ctx.aligned, ctx.method
    return roi_align_backward_op(gradient, *ctx.saved_tensors, *options), *[None] * 8


roi_align_op.register_autograd(differentiate, setup_context=setup_context)
