"""The material of the toybox: random numbers, the eight toys, the grounds on which they lie.

Each toy is a function from points to the signed distance of its outline.

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

import hashlib
import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Knobs = tuple[float, float, float]
Colour = tuple[float, float, float]  # red, green, blue: 0 .. 255

VERSION = 1  # Part of every random seed: a change of the generator must change it and the committed hash.

TURN = 5040  # Parts of a full turn. Half of it divides by 5, 6, 7, 8, 9 and 10: stars and gears fold exactly.


def cos_sin(angle: int) -> tuple[float, float]:
    """Cosine and sine of `angle` / TURN turns, rounded to 1 / 65536.

    Two C libraries may disagree in the last bit of a cosine; after the rounding they agree, because no
    entry of the table lies near the middle between two steps (a test checks all 5040).
    """
    radians = 2 * math.pi * (angle % TURN) / TURN
    return round(math.cos(radians) * 65536) / 65536, round(math.sin(radians) * 65536) / 65536


# --- random numbers ----------------------------------------------------------------------------------


class Dice:
    """Random numbers for one purpose: the same key gives the same numbers, whatever was drawn elsewhere."""

    def __init__(self, *key: object):
        digest = hashlib.sha256("/".join(map(str, ("toybox", VERSION, *key))).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def integer(self, stop: int) -> int:
        """0 .. stop - 1. (The modulo's bias is below 1e-15.)"""
        return int(self._bits.random_raw()) % stop

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high), from the 53 bits that a float holds exactly."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) / 2**53)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def words(self, count: int) -> Array:
        """`count` raw 64-bit words, uint64."""
        return self._bits.random_raw(count)

    def noise(self, height: int, width: int, cell_y: float, cell_x: float) -> Array:
        """Smooth noise in [0, 1), float32 (height, width): a random lattice, blended between its points.

        Cells are in pixels; long flat cells give wood grain, square ones give mottle.
        """
        rows, lower, row_weight = _lattice(height, cell_y)
        columns, right, column_weight = _lattice(width, cell_x)
        words = self.words(rows * columns) >> np.uint64(40)  # 24 bits fill a float32 exactly
        lattice = words.astype(np.float32).reshape(rows, columns) * np.float32(2**-24)
        wide = lattice[:, right] + (lattice[:, right + 1] - lattice[:, right]) * column_weight
        return wide[lower] + (wide[lower + 1] - wide[lower]) * row_weight[:, None]


def _lattice(pixels: int, cell: float) -> tuple[int, Array, Array]:
    """Number of lattice points, and for each pixel the point before it and the smooth weight of the next."""
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) / np.float32(cell)
    before = position.astype(np.int64)
    t = position - before.astype(np.float32)
    return int(before[-1]) + 2, before, t * t * (3 - 2 * t)


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


# --- what the toys lie on -----------------------------------------------------------------------------
# Each draws a float32 (3, S, S) picture, 0 .. 255, and names the colours that toys must stand out from.


def hue(position: float, saturation: float, value: float) -> Colour:
    """RGB of a place on the colour circle, 0 .. 6 (red, yellow, green, cyan, blue, magenta)."""
    parts = (abs(position - 3) - 1, 2 - abs(position - 2), 2 - abs(position - 4))
    red, green, blue = (255 * value * (1 - saturation * (1 - min(max(part, 0.0), 1.0))) for part in parts)
    return red, green, blue


def shaded(colour: Colour, shade: Array) -> Array:
    """The colour (3, 1, 1) times a field of brightness (S, S)."""
    return np.asarray(colour, np.float32)[:, None, None] * shade


def blend(below: Array, above: Array, amount: Array) -> Array:
    """`above` over `below` where amount (0 .. 1) says so."""
    return below + (above - below) * amount


def bands(position: Array, period: float, width: float) -> Array:
    """Antialiased stripes, 0 .. 1, around every multiple of `period`; all three in pixels."""
    away = np.abs(position - np.rint(position / np.float32(period)) * np.float32(period))
    return np.clip(0.5 * width + 0.5 - away, 0, 1)


def _turned(dice: Dice, size: int) -> tuple[Array, Array]:
    """Pixel coordinates (S, S) after a random turn, from a random origin."""
    cosine, sine = cos_sin(dice.integer(TURN))
    x = np.arange(size, dtype=np.float32) + np.float32(dice.uniform(0, size))
    y = (np.arange(size, dtype=np.float32) + np.float32(dice.uniform(0, size)))[:, None]
    return x * cosine + y * sine, y * cosine - x * sine


def planks(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """Boards with grain and growth rings, each of its own tone, dark seams between them."""
    scale, wood = size / 256, hue(dice.uniform(0.4, 0.62), dice.uniform(0.3, 0.6), dice.uniform(0.45, 0.85))
    across = (np.arange(size, dtype=np.float32) + np.float32(dice.uniform(0, size)))[:, None]
    width = dice.uniform(38, 90) * scale
    board = np.rint(across / np.float32(width) - np.float32(0.5)).astype(np.int64)[:, 0]
    tones = dice.noise(1, 16, 1, 0.4)[0] * np.float32(0.22)
    shade = 0.86 + tones[board][:, None] + 0.16 * dice.noise(size, size, 1.7 * scale + 0.5, 45 * scale)
    ring = dice.noise(size, size, 24 * scale, 170 * scale) * 7 + tones[board][:, None] * 40
    shade = shade - 0.16 * np.abs(ring - np.rint(ring))
    shade = shade * (1 - 0.5 * bands(across, width, 1.6 * scale))
    if dice.chance(0.5):
        shade = shade.T
    return shaded(wood, shade), [wood]


def felt(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """One muted colour, clouded, with short fibres in two directions."""
    scale, cloth = size / 256, hue(dice.uniform(0, 6), dice.uniform(0.15, 0.65), dice.uniform(0.25, 0.7))
    shade = 0.8 + 0.16 * dice.noise(size, size, 40 * scale, 40 * scale)
    fibres = dice.noise(size, size, 1.1, 4.5) + dice.noise(size, size, 4.5, 1.1)
    return shaded(cloth, shade + 0.13 * fibres), [cloth]


def paper(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """Drawing paper: plain, ruled, or squared, a little cloudy."""
    scale, sheet = size / 256, hue(dice.uniform(0, 6), dice.uniform(0.0, 0.14), dice.uniform(0.8, 0.97))
    shade = (
        0.93 + 0.1 * dice.noise(size, size, 50 * scale, 50 * scale) + 0.04 * dice.noise(size, size, 1.5, 1.5)
    )
    ruled = dice.integer(3)
    across, down = _turned(dice, size)
    period, ink = dice.uniform(13, 22) * scale, np.float32(0.3)
    lines = bands(down, period, 0.4) if ruled else np.float32(0)
    if ruled == 2:
        lines = np.maximum(lines, bands(across, period, 0.4))
    pen = hue(dice.uniform(3.2, 4.4), 0.6, 0.6)
    canvas = shaded(sheet, shade)
    return blend(canvas, shaded(pen, np.ones((1, 1), np.float32)), lines * ink), [sheet]


def gingham(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """Checked cloth: coloured bands both ways over white, darkest where they cross, and the weave."""
    scale, dye = size / 256, hue(dice.uniform(0, 6), dice.uniform(0.3, 0.55), dice.uniform(0.55, 0.8))
    across, down = _turned(dice, size)
    period = dice.uniform(24, 56) * scale
    checks = 0.5 * (bands(across, period, 0.5 * period) + bands(down, period, 0.5 * period))
    white = hue(dice.uniform(0, 6), 0.05, 0.93)
    weave = 0.95 + 0.05 * dice.noise(size, size, 30 * scale, 30 * scale)
    weave = weave - 0.08 * (bands(across, 3, 1) - bands(down, 3, 1)) * (checks - 0.5)
    return blend(shaded(white, weave), shaded(dye, weave), checks), [white, dye]


def rug(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """Broad and narrow stripes of three related colours, with ribs across them."""
    scale, start = size / 256, dice.uniform(0, 6)
    value = dice.uniform(0.35, 0.75)
    colours = [
        hue((start + shift) % 6, dice.uniform(0.2, 0.45), value * dice.uniform(0.85, 1.1))
        for shift in (0, 0.5, 5.5)
    ]
    across, down = _turned(dice, size)
    period = dice.uniform(45, 90) * scale
    rib = 0.9 + 0.1 * bands(across, 4 * scale, 2 * scale) + 0.08 * dice.noise(size, size, 2, 2)
    canvas = blend(shaded(colours[0], rib), shaded(colours[1], rib), bands(down, period, period * 0.45))
    narrow = bands(down + period * 0.5, period, period * 0.14)
    return blend(canvas, shaded(colours[2], rib), narrow), colours


def terrazzo(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """A pale stone floor with chips of two colours: level sets of smooth noise."""
    scale, stone = size / 256, hue(dice.uniform(0, 6), dice.uniform(0.02, 0.15), dice.uniform(0.6, 0.92))
    canvas = shaded(stone, 0.94 + 0.08 * dice.noise(size, size, 20 * scale, 20 * scale))
    for tone in (dice.uniform(0.55, 0.75), dice.uniform(1.08, 1.2)):
        chip = shaded(stone, np.full((1, 1), tone, np.float32))
        field = dice.noise(size, size, 7 * scale, 9 * scale) + 0.35 * dice.noise(
            size, size, 2.5 * scale, 2.5 * scale
        )
        canvas = blend(canvas, chip, np.clip((field - 0.94) * (9 * scale), 0, 0.8))
    return canvas, [stone]


def tiles(dice: Dice, size: int) -> tuple[Array, list[Colour]]:
    """Glazed square tiles, each of its own brightness, in pale or dark grout."""
    scale, glaze = size / 256, hue(dice.uniform(0, 6), dice.uniform(0.08, 0.45), dice.uniform(0.4, 0.85))
    across, down = _turned(dice, size)
    period = np.float32(dice.uniform(36, 70) * scale)
    row, column = (np.rint(line / period - np.float32(0.5)).astype(np.int64) for line in (down, across))
    tones = dice.noise(1, 64, 1, 0.4)[0] * np.float32(0.16)
    shade = (
        0.86 + tones[(row * 11 + column * 29) % 64] + 0.07 * dice.noise(size, size, 16 * scale, 16 * scale)
    )
    grout = np.maximum(bands(across, period, 2 * scale), bands(down, period, 2 * scale))
    joint = shaded(glaze, np.full((1, 1), (0.6, 1.15)[dice.integer(2)], np.float32))
    return blend(shaded(glaze, shade), joint, grout), [glaze]


GROUNDS = (planks, felt, paper, gingham, rug, terrazzo, tiles)
