"""The eight toys: functions from points to the signed distance of an outline.

A *signed distance* is negative inside the shape, zero on its edge, positive outside, and grows by one
per unit walked away from the edge. From that one number a renderer gets everything: the mask (distance
< 0), an antialiased edge (the distance is the part of the pixel that is covered), a bevel (how far is
the edge?) and a soft shadow. Shapes are joined with `min`, cut with `max`; see
https://iquilezles.org/articles/distfunctions2d for the family.

Conventions: `x` to the right and `y` down, both float32 arrays of one shape; a toy fills the circle of
radius 1 around the origin; `knobs` are three numbers in [0, 1) that vary a toy within its class.

Portability: only + - * /, sqrt, abs, min, max and rint touch a pixel. IEEE 754 fixes their results to
the last bit; it does not fix those of sin, cos, exp or pow, so angles come from a rounded table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Knobs = tuple[float, float, float]

TURN = 5040  # Parts of a full turn. Half of it divides by 5, 6, 7, 8, 9 and 10: stars and gears fold exactly.


def cos_sin(angle: int) -> tuple[float, float]:
    """Cosine and sine of `angle` / TURN turns, rounded to 1 / 65536.

    Two C libraries may disagree in the last bit of a cosine; after the rounding they agree, because no
    entry of the table lies near the middle between two steps (a test checks all 5040).
    """
    radians = 2 * math.pi * (angle % TURN) / TURN
    return round(math.cos(radians) * 65536) / 65536, round(math.sin(radians) * 65536) / 65536


# --- the carpenter's tools --------------------------------------------------------------------------


def length(x: Array, y: Array) -> Array:
    """Distance from the origin."""
    return np.sqrt(x * x + y * y)


def box(x: Array, y: Array, half_width: float, half_height: float, corner: float) -> Array:
    """Rectangle around the origin with rounded corners of radius `corner`."""
    dx = np.abs(x) - (half_width - corner)
    dy = np.abs(y) - (half_height - corner)
    outside = length(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - corner


def ellipse(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """Ellipse around the origin: exact on the edge, a fair guess of the distance near it.

    The implicit function q = |p / radii| - 1 is not a distance; q / |gradient q| is one, to first order.
    """
    u, v = x / half_width, y / half_height
    q = length(u, v)
    return q * (q - 1) / (length(u / half_width, v / half_height) + 1e-6)


def half_plane(x: Array, y: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """Distance from the line through `start` and `end`; negative on the right of the walk (y is down)."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    norm = math.sqrt(along_x * along_x + along_y * along_y)
    return (x - start[0]) * (along_y / norm) - (y - start[1]) * (along_x / norm)


def join(a: Array, b: Array, blend: float) -> Array:
    """Union of two shapes, with a fillet of about `blend` in the corner where they meet (a smooth min)."""
    near = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - near * near * (0.25 / blend)


def cut(a: Array, b: Array, blend: float) -> Array:
    """Shape `a` without shape `b`, the edge between them rounded by about `blend`."""
    return -join(-a, b, blend)


def fold(x: Array, y: Array, n: int) -> tuple[Array, Array]:
    """Mirror the plane into one wedge of angle 0 .. pi / n: what is drawn there appears 2n times.

    A kaleidoscope without an arctangent. Every line at a multiple of pi / n is a mirror of an n-pointed
    star, so each step reflects what lies beyond the middle mirror and halves the wedge.
    """
    y = np.abs(y)  # wedge 0 .. pi
    mirror = n
    while mirror > 1:
        mirror = (mirror + 1) // 2
        cosine, sine = cos_sin(TURN // 2 // n * mirror)
        beyond = 2 * np.maximum(y * cosine - x * sine, 0)
        x, y = x + beyond * sine, y - beyond * cosine
    return x, y


# --- the toys ---------------------------------------------------------------------------------------


def ring(x: Array, y: Array, knobs: Knobs) -> Array:
    """All points near a circle: the band between two radii. Its hole is background."""
    half_band = 0.15 + 0.09 * knobs[0]
    return np.abs(length(x, y) - (0.98 - half_band)) - half_band


def star(x: Array, y: Array, knobs: Knobs) -> Array:
    """Five points (sometimes six). In the folded wedge one straight edge is left, from tip to notch."""
    points = 6 if knobs[0] > 0.8 else 5
    rounding = 0.03 + 0.05 * knobs[1]
    notch = 0.42 + 0.1 * knobs[2]
    x, y = fold(x, y, points)
    cosine, sine = cos_sin(TURN // 2 // points)
    tip_x, edge_x, edge_y = 0.93, notch * cosine - 0.93, notch * sine
    # Distance from the segment tip .. notch; its sign is the side of the edge on which the point lies.
    t = ((x - tip_x) * edge_x + y * edge_y) * (1 / (edge_x * edge_x + edge_y * edge_y))
    t = np.minimum(np.maximum(t, 0), 1)
    distance = length(x - tip_x - t * edge_x, y - t * edge_y)
    inside = (x - tip_x) * edge_y - y * edge_x < 0
    return np.where(inside, -distance, distance) - rounding


def crescent(x: Array, y: Array, knobs: Knobs) -> Array:
    """A disc out of which a second, smaller disc has taken a bite."""
    bite = 0.66 + 0.08 * knobs[0]
    shift = 0.40 + 0.12 * knobs[1]
    return cut(length(x, y) - 0.97, length(x - shift, y) - bite, 0.08)


def key(x: Array, y: Array, knobs: Knobs) -> Array:
    """A bow (the handle) with a hole, a blade, and two bits that stand off the blade's end."""
    bow_x = x + 0.54
    if knobs[0] < 0.5:
        bow = length(bow_x, y) - 0.45
    else:  # clover: one leaf in the folded wedge, three after unfolding
        leaf_x, leaf_y = fold(-bow_x, y, 3)
        bow = join(length(leaf_x - 0.2, leaf_y) - 0.26, length(bow_x, y) - 0.26, 0.1)
    thick = 0.13 + 0.035 * knobs[1]
    blade = box(x - 0.40, y, 0.56, thick, 0.05)
    bit = 0.22 + 0.06 * knobs[2]
    bits = np.minimum(
        box(x - 0.84, y - thick, 0.09, bit, 0.03), box(x - 0.54, y - thick, 0.09, bit - 0.05, 0.03)
    )
    hole = length(bow_x, y) - (0.17 + 0.06 * knobs[1])
    return np.maximum(join(join(bow, blade, 0.12), bits, 0.04), -hole)


def leaf(x: Array, y: Array, knobs: Knobs) -> Array:
    """The lens in which two large discs overlap, a little bent, with a stem."""
    half_width = 0.42 + 0.12 * knobs[0]
    half_length, stem = 0.76, 0.06
    y = y - (knobs[1] - 0.5) * 0.5 * (x * x - 0.35)  # bend: a parabola moves the middle against the ends
    # The circle through both ends and half_width off the axis; |y| makes the second one of the first.
    radius = (half_length * half_length + half_width * half_width) / (2 * half_width)
    blade = length(x + 0.2, np.abs(y) + (radius - half_width)) - radius
    return join(blade, box(x - 0.7, y, 0.3, stem, stem), 0.07)


def gear(x: Array, y: Array, knobs: Knobs) -> Array:
    """A disc with seven to ten teeth around it and a round hole for the axle."""
    teeth = 7 + int(4 * knobs[0])
    radius = length(x, y)
    tooth_x, tooth_y = fold(x, y, teeth)
    # A tooth narrows outwards by 0.35 to 1, and ends at radius 0.98.
    flank = (tooth_y + 0.35 * (tooth_x - 0.86) - 1.36 / teeth) * 0.944
    tooth = np.maximum(np.maximum(flank, radius - 0.98), 0.5 - radius)
    hole = radius - (0.22 + 0.12 * knobs[1])
    return np.maximum(join(radius - 0.74, tooth, 0.05), -hole)


def cup(x: Array, y: Array, knobs: Knobs) -> Array:
    """Seen a little from above: a body that narrows downwards, a rim, and a handle with its hole."""
    x, y = x / 0.86 + 0.22, y / 0.86
    top = 0.62 + 0.06 * knobs[0]
    bottom = top - 0.08 - 0.2 * knobs[1]
    wall_x, wall_y = top - bottom, 1.3
    norm = math.sqrt(wall_x * wall_x + wall_y * wall_y)
    walls = ((np.abs(x) - top) * wall_y + (y + 0.62) * wall_x) * (1 / norm)
    foot = y + 0.15 * x * x - 0.78  # the parabola is the near edge of the round foot
    body = np.maximum(cut(walls, -foot, 0.15), -0.62 - y)
    rim = ellipse(x, y + 0.62, top + 0.03, 0.21)
    grip = 0.37 + 0.05 * knobs[2]
    handle = np.abs(length(x - 0.64, y - 0.04) - grip) - 0.11
    return join(join(body, rim, 0.04), handle, 0.05) * 0.86


def arrow(x: Array, y: Array, knobs: Knobs) -> Array:
    """A shaft and a triangle."""
    shaft = 0.18 + 0.08 * knobs[0]
    base, wing, rounding = 0.02 + 0.2 * knobs[1], 0.56 + 0.12 * knobs[2], 0.05
    upper = half_plane(x, y, (base, -wing), (0.9, 0))
    lower = half_plane(x, y, (0.9, 0), (base, wing))
    head = np.maximum(np.maximum(upper, lower), base - x) - rounding
    return join(head, box(x + 0.35, y, 0.62, shaft, 0.06), 0.05)


SHAPES: dict[str, Callable[[Array, Array, Knobs], Array]] = {
    "ring": ring,
    "star": star,
    "crescent": crescent,
    "key": key,
    "leaf": leaf,
    "gear": gear,
    "cup": cup,
    "arrow": arrow,
}  # the order gives the COCO category ids 1 .. 8


# --- what is engraved on a toy: decoration, no part of its outline ------------------------------------


def cup_mouth(x: Array, y: Array, knobs: Knobs) -> Array:
    """The dark opening into which one would pour."""
    return ellipse(x / 0.86 + 0.22, y / 0.86 + 0.62, 0.55 + 0.06 * knobs[0], 0.135) * 0.86


def leaf_veins(x: Array, y: Array, knobs: Knobs) -> Array:
    """The midrib and the side veins that leave it every quarter unit."""
    y = np.abs(y - (knobs[1] - 0.5) * 0.5 * (x * x - 0.35))
    along = x + 0.75 * y
    side = np.abs(along - np.rint(along * 4) * 0.25) * 0.8
    return np.minimum(y, side + 0.012) - 0.025


def gear_groove(x: Array, y: Array, knobs: Knobs) -> Array:
    """A turned groove between the axle and the teeth."""
    return np.abs(length(x, y) - 0.58) - 0.03


ENGRAVINGS: dict[str, Callable[[Array, Array, Knobs], Array]] = {
    "cup": cup_mouth,
    "leaf": leaf_veins,
    "gear": gear_groove,
}
