"""The teaching cases of the explorer: pictures drawn on the spot, and settings that show one thing each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minimrcnn.datasets.toybox import scene

SIDE = 320  # pixels of every picture here
TEACHING_ROI = (87.6, 52.3, 213.4, 180.2)


class Lesson(NamedTuple):
    """Where the explorer's controls go, and what to look for there."""

    picture: str
    roi: tuple[float, float, float, float]  # pixels of the picture
    stride: int = 16
    output_size: int = 7
    sampling_ratio: int = 2
    aligned: bool = True
    detail: str = "roi_align"
    look: str = ""


LESSONS = {
    "half a pixel off: aligned=False": Lesson(
        "toys",
        TEACHING_ROI,
        aligned=False,
        look="Half a pixel of the map is half a cell: RoIAlign reads 8 px too far right and down, wherever "
        "the RoI is. RoIPool is off by that much too, and by its rounding. Tick 'aligned'.",
    ),
    "half a pixel of the picture more": Lesson(
        "toys",
        (103.8, 52.3, 229.6, 180.2),
        detail="roi_pool",
        look="Push the RoI right by 0.5: RoIPool's left side jumps by a cell, RoIAlign's by half a pixel.",
    ),
    "a RoI smaller than a bin": Lesson(
        "toys",
        (100.3, 90.2, 106.1, 95.7),
        look="Six pixels in cells of 16: rounding reads whole cells beside it, RoIAlign a slope inside one.",
    ),
    "a RoI over the border": Lesson(
        "toys",
        (-30.5, -12.2, 70.3, 60.4),
        look="Outside the picture RoIPool's bins are 0; RoIAlign keeps the border's value for a cell.",
    ),
    "a diagonal edge": Lesson(
        "diagonal edge",
        (87.9, 88.1, 199.9, 200.1),
        output_size=14,
        look="The edge runs from corner to corner of the RoI, but x rounds down where y rounds up: rounded, "
        "it leaves the diagonal by a cell. A mask learnt from such a crop is drawn beside its object.",
    ),
    "a ramp, f(x, y) = x": Lesson(
        "ramp",
        TEACHING_ROI,
        look="A straight line survives bilinear interpolation: inside the picture RoIAlign is exact.",
    ),
}


def picture_named(name: str) -> Tensor:
    """One of the pictures of the lessons, (3, SIDE, SIDE): uint8 "toys", float "diagonal edge" and "ramp"."""
    if name == "toys":
        return torch.from_numpy(scene(0, "val", 3, SIDE)[0]).permute(2, 0, 1)
    place = (torch.arange(SIDE) + 0.5) / SIDE
    if name == "ramp":
        return place.expand(3, SIDE, SIDE)
    if name == "diagonal edge":  # half covered pixels on the edge, as a camera sees them
        below = (place[:, None] - place) * SIDE + 0.5
        return below.clamp(0, 1).expand(3, SIDE, SIDE)
    raise ValueError(f"there is no picture {name!r}; there are 'toys', 'diagonal edge' and 'ramp'")
