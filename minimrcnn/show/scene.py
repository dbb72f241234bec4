"""What the crop comparison shows, as numbers: the map, what each operation reads of it, crops and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minimrcnn.roi_ops.checks import size_pair
from minimrcnn.roi_ops.named import operation
from minimrcnn.show.alignment import AlignmentError, apply, places, read_off, summarise, summary_line
from minimrcnn.show.reading import TITLES, Axis, check_roi, check_stride, read_axis
from minimrcnn.show.sheet import Array, Raster

THUMBNAIL = 600  # pixels of its longer side
OPERATIONS = tuple(TITLES)  # roi_pool, roi_warp, roi_align


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, or a feature map that stands for one, and the map that the operations read.

    Attributes:
        picture: (3, H, W) float 0..1 for the eye; None where there is only a map.
        features: (1, 1, h, w) float32, cells of stride x stride pixels.
    """

    picture: Tensor | None
    features: Tensor
    stride: int

    @property
    def cells(self) -> tuple[int, int]:
        """(height, width) of the map."""
        return tuple(self.features.shape[-2:])

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of the picture; of a map, of the picture that its cells cover."""
        if self.picture is not None:
            return tuple(self.picture.shape[1:])
        return self.cells[0] * self.stride, self.cells[1] * self.stride

    @property
    def values(self) -> Array:
        """(h, w), the map as an array."""
        return self.features[0, 0].numpy()

    @cached_property
    def thumbnail(self) -> Raster | None:
        """The picture in twice the pixels that it is shown with."""
        if self.picture is None:
            return None
        height, width = self.pixels
        shrink = min(1.0, THUMBNAIL / max(height, width))
        size = max(round(height * shrink), 1), max(round(width * shrink), 1)
        small = F.interpolate(self.picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return Raster((small * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), smooth=True)

    @cached_property
    def _maps(self) -> dict[float, Raster]:
        return {}

    def grey(self, pale: float) -> Raster:
        """The map as a raster; pale: how far towards white. Made once, as the mouse moves over it."""
        if pale not in self._maps:
            self._maps[pale] = Raster(self.as_grey(self.values, pale))
        return self._maps[pale]

    def as_grey(self, values: Array, pale: float) -> Array:
        """(H, W) values to (H, W, 3) uint8: the map's least value is black, its largest white."""
        low, high = self.values.min(), self.values.max()
        part = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
        grey = np.rint((pale + (1 - pale) * part) * 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


def as_source(picture_or_map: Tensor | Array, stride: int, channel: int = 0) -> Source:
    """Tell a picture, (3, H, W), from a feature map, (h, w) or (C, h, w), and make the picture's map.

    A picture's map is its brightness 0..255, the mean of stride x stride pixels in each cell.
    """
    stride = check_stride(stride)
    if not isinstance(picture_or_map, Tensor | np.ndarray | list):
        raise TypeError(
            f"a picture or a map is a tensor or an array, not {type(picture_or_map).__name__}; of a PIL "
            "picture: torchvision.transforms.functional.pil_to_tensor(picture)"
        )
    given = torch.as_tensor(picture_or_map).detach().cpu()
    if given.ndim == 3 and given.shape[0] == 3:
        return _of_picture(given, stride)
    if given.ndim == 3 and given.shape[2] == 3 and given.dtype == torch.uint8:
        shape = tuple(given.shape)
        raise ValueError(f"a picture is (3, H, W), this one {shape}: torch.as_tensor(it).permute(2, 0, 1)")
    if given.ndim not in (2, 3) or 0 in given.shape:
        raise ValueError(
            "a picture is (3, H, W) and a feature map (h, w) or (C, h, w), of one image at a time; "
            f"this one is {tuple(given.shape)}"
        )
    maps = given.float() if given.ndim == 3 else given.float()[None]
    if not 0 <= channel < len(maps):
        raise ValueError(f"channel {channel}: the map has {len(maps)}, from 0 on")
    if not maps[channel].isfinite().all():
        raise ValueError(f"channel {channel} of the feature map holds values that are not finite")
    return Source(None, maps[channel][None, None], stride)


def _of_picture(picture: Tensor, stride: int) -> Source:
    colours = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()
    if not (colours >= 0).all() or not (colours <= 1).all():  # NaN fails both
        raise ValueError(
            "a picture (3, H, W) is uint8, or float from 0 to 1; pass one channel of a feature map, (h, w)"
        )
    brightness = colours.mean(dim=0)[None, None] * 255
    # The last cells may lie over the edge: they are the mean of what there is.
    features = F.avg_pool2d(brightness, stride, ceil_mode=True, count_include_pad=False)
    return Source(colours, features, stride)


@dataclass(frozen=True)
class Scene:
    """Everything that the figure shows. Lengths in pixels of the picture unless the name says cells."""

    source: Source
    roi: tuple[float, float, float, float]
    ops: tuple[str, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    detail: str  # the operation whose bin is shown enlarged
    bin: tuple[int, int]  # its row and column
    readings: dict[str, tuple[Axis, Axis]]  # down, across
    crops: dict[str, Array]  # (P, P)
    errors: dict[str, AlignmentError]
    window: tuple[float, float, float, float]  # left, top, width, height of what is shown around the RoI

    @property
    def stride(self) -> int:
        return self.source.stride

    @property
    def summary(self) -> str:
        """The numbers in a line."""
        return summary_line(self.errors)


def make_scene(
    source: Source,
    roi: Sequence[float],
    ops: Sequence[str] = OPERATIONS,
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    detail: str | None = None,
    bin: tuple[int, int] = (0, 0),
    window: tuple[float, float, float, float] | None = None,
) -> Scene:
    """Run the operations and work out what they read. Arguments and errors as `compare_crops`.

    window: what to show around the RoI, while it is dragged; left, top, width and height.
    """
    roi, ops, bins = check_roi(roi), _check_ops(ops), size_pair(output_size)
    detail = ops[-1] if detail is None else detail
    if detail not in ops:
        raise ValueError(f"detail {detail!r} is none of the operations that are shown: {', '.join(ops)}")
    if not (0 <= bin[0] < bins[0] and 0 <= bin[1] < bins[1]):
        raise ValueError(f"bin {tuple(bin)} is outside the {bins[0]} x {bins[1]} bins, which count from 0")
    x1, y1, x2, y2 = roi
    rest = source.stride, sampling_ratio, aligned
    readings = {
        name: (read_axis(name, y1, y2, bins[0], *rest), read_axis(name, x1, x2, bins[1], *rest))
        for name in ops
    }
    box = torch.tensor([roi])
    # What is in the cells, and where they are, in one go.
    maps = torch.cat([source.features, places(*source.cells, source.stride)], dim=1)  # (1, 6, h, w)
    read = {name: apply(name, maps, box, bins, *rest) for name in ops}  # (1, 6, P, P) each
    crops = {name: crop[0, 0].numpy() for name, crop in read.items()}
    errors = {name: summarise(read_off(crop[:, 1:], box)[0]) for name, crop in read.items()}
    window = window or window_around(roi, readings, source.stride)
    settings = source, roi, ops, bins, sampling_ratio, aligned, detail, tuple(bin)
    return Scene(*settings, readings, crops, errors, window)


def window_around(
    roi: tuple[float, ...], readings: dict[str, tuple[Axis, Axis]], stride: int
) -> tuple[float, float, float, float]:
    """Left, top, width and height of what to show: the RoI, what is read of it, and about a cell around.

    On whole cells, so that a RoI that is moved a little moves over a grid that stands still.
    """
    corners = [roi[:2], roi[2:]]
    for down, across in readings.values():
        corners += zip(across.extent, down.extent, strict=True)
    first, past = np.floor(np.min(corners, axis=0) / stride), np.ceil(np.max(corners, axis=0) / stride)
    left, top = (first - 0.6) * stride
    width, height = (past - first + 1.2) * stride
    return left, top, width, height


def _check_ops(ops: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; a single one may come as it is. The nearest right name goes with an error."""
    names = (ops,) if isinstance(ops, str) else tuple(ops)
    for name in names:
        operation(name)
    if not names or len(set(names)) < len(names) or not set(names) <= set(OPERATIONS):
        raise ValueError(f"ops names operations, each once, of {', '.join(OPERATIONS)}; got {names}")
    return names


def words(scene: Scene) -> str:
    """What the figure shows, for who cannot see it."""
    x1, y1, x2, y2 = scene.roi
    height, width = scene.output_size
    parts = [
        f"A RoI from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) pixels over cells of {scene.stride} pixels, "
        f"cropped to {height} x {width} bins."
    ]
    for name in scene.ops:
        down, across = scene.readings[name]
        (left, right), (top, bottom) = across.extent, down.extent
        parts.append(
            f"{TITLES[name]} reads ({left:g}, {top:g}) to ({right:g}, {bottom:g}), misaligned by "
            f"{scene.errors[name]} pixels."
        )
    return " ".join(parts)
