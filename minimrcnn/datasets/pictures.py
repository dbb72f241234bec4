"""A picture file, of whatever kind, as RGB pixels the right way up."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from minimrcnn.errors import UserError

_EXIF_ORIENTATION = 0x0112


def read_picture(path: Path, width: int | None, height: int | None) -> Tensor:
    """A picture as (3, H, W) uint8, RGB, of native size.

    Transparency is dropped; 16-bit grey keeps its upper eight bits. `width` and `height` are what
    the annotation file says, in pixels; None takes any. A picture is turned as EXIF says, unless only
    the unturned one has that size: some annotation tools look at EXIF and some do not.

    Raises:
        UserError: the file is missing, cut short, no picture, or of another size.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF; palettes with transparency
            picture.load()
            bands = _to_rgb(_upright(picture, width, height)).split()
            pixels = np.stack([np.asarray(band) for band in bands])  # (3, H, W)
    except FileNotFoundError:
        raise UserError(f"The picture {path} is missing.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give the picture files that are in it.") from None
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise UserError(f"The picture {path} cannot be read whole: {error}. Fetch it again.") from None
    found = pixels.shape[2], pixels.shape[1]
    if (width or found[0], height or found[1]) != found:
        raise UserError(
            f"The picture {path} is {found[0]} x {found[1]} pixels, but its annotation file says "
            f"{width} x {height}. Put right the one or the other, or the boxes will not fit."
        )
    return torch.from_numpy(pixels)


def _upright(picture: Image.Image, width: int | None, height: int | None) -> Image.Image:
    """Turned as EXIF says, unless the stated size fits only the picture as it is stored."""
    orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation == 1:
        return picture
    w, h = picture.size
    turned = (h, w) if orientation in (5, 6, 7, 8) else (w, h)
    fits = (width or turned[0], height or turned[1]) == turned
    return ImageOps.exif_transpose(picture) if fits else picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        values = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("its samples are floating-point numbers, which have no common brightest value")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
