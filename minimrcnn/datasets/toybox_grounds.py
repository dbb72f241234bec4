"""What the toys lie on: colours, and seven grounds of wood, cloth, paper and stone.

Each ground draws a float32 (3, S, S) picture, red, green, blue, 0 .. 255, and names the colours that
toys must stand out from. Its pattern is drawn for 256 pixels and scaled with the picture.
"""

from __future__ import annotations

import numpy as np

from minimrcnn.datasets.toybox_dice import Dice
from minimrcnn.datasets.toybox_shapes import TURN, Array, cos_sin

Colour = tuple[float, float, float]  # red, green, blue: 0 .. 255


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
