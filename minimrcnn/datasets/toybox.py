"""Photographs of a toy box: a COCO-format instance segmentation data set that needs no network.

Eight kinds of toy whose boxes look alike and whose masks do not, in any rotation, size and colour,
touching and covering one another, on wood, felt, paper and cloth. `scene` makes one picture:

    Dice -> compose (which toys, where) -> background -> shadow and toy, bottom to top -> camera

and `toybox_files.draw_toybox` writes many of them as a data set. What a toy looks like is in
`toybox_shapes`, what it lies on in `toybox_grounds`, where the numbers come from in `toybox_dice`.

Same seed, same pixels, on every machine: random numbers are raw 64-bit PCG64 words (NumPy keeps these
stable, its distributions it may change), and floats go elementwise through operations that IEEE 754
fixes to the last bit. Sums over many floats depend on the CPU's vector width: here only integers are summed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from minimrcnn.datasets.toybox_dice import Dice
from minimrcnn.datasets.toybox_grounds import GROUNDS, Colour, bands, blend, hue, shaded
from minimrcnn.datasets.toybox_shapes import ENGRAVINGS, SHAPES, TURN, Array, Knobs, cos_sin
from minimrcnn.errors import UserError

CATEGORIES = tuple(SHAPES)  # COCO category id = index + 1
MIN_VISIBLE = 0.5  # An annotated toy shows at least this part of itself ...
MIN_PIXELS = 40  # ... and this many pixels. Toys that would show less are never put into the picture.
SIZES = (48, 4096)  # Pictures smaller than this have no room for two toys of MIN_PIXELS.
COUNTS = (2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8)  # toys in a picture; 3 % of the pictures have none
# Square roots of areas at size 256: COCO's small, medium, large.
USUAL_HUES = ("ring", "star", "key", "leaf", "gear", "cup", "arrow", "crescent")  # round the colour circle
SIDES = ((21, 31), (34, 90), (34, 90), (104, 150), (104, 150))


@dataclass(frozen=True)
class Instance:
    """One toy of a picture of size (S, S).

    mask: bool (S, S), the visible part (what the annotations hold). box: (x0, y0, x1, y1) in pixels
    around the whole toy, as if nothing covered it and the picture did not end; x1 and y1 are exclusive.
    full_area: pixels of the whole toy, so mask.sum() / full_area is the part that shows.
    """

    category: str
    mask: Array
    box: tuple[int, int, int, int]
    full_area: int


# --- composition: which toys, and where ---------------------------------------------------------------


@dataclass
class Toy:
    """A toy in its own window of pixels, and, once placed, the window's top left corner in the picture."""

    category: str
    radius: float  # pixels
    knobs: Knobs
    x: Array  # float32 (h, w): the toy's own frame, in which it fills the unit circle
    y: Array
    distance: Array  # float32 (h, w), signed, in pixels
    mask: Array  # bool (h, w)
    full_area: int  # pixels of the mask
    shown: int = 0  # pixels that nothing covers and the picture holds
    top: int = 0
    left: int = 0


def _make_toy(dice: Dice, category: str, side: float, size: int) -> Toy:
    """A toy that covers about side ** 2 pixels, turned, mirrored and squashed a little."""
    knobs = (dice.uniform(), dice.uniform(), dice.uniform())
    cosine, sine = cos_sin(dice.integer(TURN))
    flatten = (1 if dice.chance(0.5) else -1) / dice.uniform(0.86, 1.0)

    def turned(across: Array, down: Array) -> tuple[Array, Array, Array]:
        x = across * cosine + down[:, None] * sine
        y = (down[:, None] * cosine - across * sine) * flatten
        return x, y, SHAPES[category](x, y, knobs)

    # A first look at 40 x 40 points tells the area, hence the radius, and how large a window it takes.
    grid = (np.arange(40, dtype=np.float32) + np.float32(0.5)) / 20 - 1
    coarse = turned(grid, grid)[2]
    radius = min(side / math.sqrt(np.count_nonzero(coarse < 0) / 400), 0.46 * size)
    rows, columns = (np.flatnonzero((coarse < 0.05).any(axis)) for axis in (1, 0))
    margin = 3 + int(1.4 * _shadow_edge(size))  # and the soft edge of its shadow around it

    def pixels(span: Array) -> Array:  # pixel centres in units of the radius, from a random subpixel origin
        first = int((span[0] / 20 - 1) * radius + 2 * size) - 2 * size - margin
        last = int((span[-1] / 20 - 0.95) * radius + 2 * size) - 2 * size + margin
        return (np.arange(first, last + 1, dtype=np.float32) + np.float32(dice.uniform())) / np.float32(
            radius
        )

    x, y, distance = turned(pixels(columns), pixels(rows))
    distance = distance * np.float32(radius)
    mask = distance < 0
    return Toy(category, radius, knobs, x, y, distance, mask, np.count_nonzero(mask))


def _shadow_edge(size: int) -> float:
    """Half the width of a shadow's soft edge, in pixels."""
    return 1.5 + 0.016 * size


def _overlap(
    toy: Toy, size: int, down: int = 0, right: int = 0
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the toy's window, moved by (down, right), meets the picture: slices of picture and window."""
    picture, window = [], []
    for start, extent in zip((toy.top + down, toy.left + right), toy.mask.shape, strict=True):
        low = min(max(start, 0), size)
        high = max(min(start + extent, size), low)
        picture.append(slice(low, high))
        window.append(slice(low - start, high - start))
    return tuple(picture), tuple(window)


def compose(dice: Dice, size: int) -> tuple[list[Toy], Array]:
    """Choose and place the toys of one picture.

    Returns them bottom to top, and the owner of every pixel: int8 (S, S), the toy's index in the list,
    -1 for the background. Each toy keeps MIN_VISIBLE of itself and MIN_PIXELS in sight: a position that
    breaks this for any toy is not taken, and a toy that finds none, though it shrinks, stays out.
    """
    toys: list[Toy] = []
    owner = np.full((size, size), -1, np.int8)
    count = 0 if dice.chance(0.03) else COUNTS[dice.integer(len(COUNTS))]
    plan: list[tuple[float, str]] = []
    for _ in range(count):
        again = plan and dice.chance(0.15)  # the same class twice: instances, not semantics
        category = plan[-1][1] if again else CATEGORIES[dice.integer(len(CATEGORIES))]
        plan.append((dice.uniform(*SIDES[dice.integer(len(SIDES))]), category))
    plan.sort(key=lambda item: -item[0])  # small on large: the other way round hides the small ones
    for side, category in plan:
        for _ in range(8 if len(toys) >= 2 else 40):
            toy = _make_toy(dice, category, max(side * size / 256, 8.0), size)
            if _place(dice, toy, toys, owner):
                toys.append(toy)
                break
            side = max(side * 0.85, SIDES[0][0])
    return toys, owner


def _place(dice: Dice, toy: Toy, toys: Sequence[Toy], owner: Array) -> bool:
    """Try positions for a toy on top of the others; True (and placed) if one keeps everybody in sight."""
    size, (height, width) = len(owner), toy.mask.shape
    friend = toys[dice.integer(len(toys))] if toys and dice.chance(0.4) else None  # touched or covered
    tries = 12
    for attempt in range(tries):
        if friend:
            cosine, sine = cos_sin(dice.integer(TURN))
            away = (friend.radius + toy.radius) * dice.uniform(0.45, 0.95)
            row = friend.top + friend.mask.shape[0] / 2 + away * sine
            column = friend.left + friend.mask.shape[1] / 2 + away * cosine
        else:
            rim = min(0.7 * toy.radius, 0.5 * size)
            row, column = dice.uniform(rim, size - rim), dice.uniform(rim, size - rim)
        toy.top, toy.left = round(row - height / 2), round(column - width / 2)
        picture, window = _overlap(toy, size)
        mask = toy.mask[window]
        toy.shown = np.count_nonzero(mask)
        covered = np.bincount(owner[picture][mask] + 1, minlength=len(toys) + 1)[1:].tolist()
        crowded = friend is None and sum(covered) > toy.shown * attempt / tries  # free ground first
        if crowded or toy.shown < max(0.6 * toy.full_area, MIN_PIXELS):
            continue
        left = [other.shown - lost for other, lost in zip(toys, covered, strict=True)]
        if all(n >= max(MIN_VISIBLE * t.full_area, MIN_PIXELS) for n, t in zip(left, toys, strict=True)):
            for other, lost in zip(toys, covered, strict=True):
                other.shown -= lost
            owner[picture][mask] = len(toys)
            return True
    return False


# --- painting -------------------------------------------------------------------------------------------


def _contrast(a: Colour, b: Colour) -> float:
    """How far apart two colours look: Euclidean, green counting double."""
    red, green, blue = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt(0.25 * red * red + 0.5 * green * green + 0.25 * blue * blue)


def _toy_colour(dice: Dice, category: str, grounds: Sequence[Colour], others: Sequence[Colour]) -> Colour:
    """A colour that stands out from the ground and from other toys.

    Most toys wear their kind's usual hue, the others any: colour is a hint that sometimes lies, and a
    model that trusts it alone is wrong about one toy in seven.
    """
    usual = dice.chance(0.85)
    middle = 6 * USUAL_HUES.index(category) / len(USUAL_HUES)
    best, best_score = (0.0, 0.0, 0.0), -1.0
    clear_of = [(ground, 80) for ground in grounds] + [(other, 40) for other in others]  # and how far
    for _ in range(24):
        if usual:
            position = (middle + dice.uniform(-0.28, 0.28)) % 6
            colour = hue(position, dice.uniform(0.55, 0.92), dice.uniform(0.5, 0.98))
        elif dice.chance(0.15):
            colour = hue(dice.uniform(0, 6), dice.uniform(0, 0.12), dice.uniform(0.15, 0.97))
        else:
            colour = hue(dice.uniform(0, 6), dice.uniform(0.45, 0.88), dice.uniform(0.45, 0.98))
        score = float("inf")
        for other, far in clear_of:
            score = min(score, _contrast(colour, other) / far)
            if score <= best_score:
                break
        else:
            best, best_score = colour, score
        if best_score >= 1:
            break
    return best


def _cast_shadow(canvas: Array, toy: Toy, throw: tuple[int, int]) -> None:
    """Darken the canvas (in place) under the toy: a soft shadow thrown (down, right), and one of contact."""
    size = canvas.shape[1]
    for down, right, soft, strength in (
        (*throw, _shadow_edge(size), 0.42),
        (0, 0, 0.6 * _shadow_edge(size), 0.3),
    ):
        (rows, columns), window = _overlap(toy, size, down, right)
        t = np.clip((soft - toy.distance[window]) * (0.5 / soft), 0, 1)
        canvas[:, rows, columns] *= 1 - strength * (t * t * (3 - 2 * t))


def _print(dice: Dice, toy: Toy) -> Array | None:
    """Where the toy shows its second colour, 0 .. 1: stripes, dots, a rim, or (None) nowhere."""
    kind, period = dice.integer(8), dice.uniform(0.28, 0.45) * toy.radius
    if period < 8:  # pixels: a finer print would hide the outline, not decorate it
        return None
    if kind == 0:
        return bands(toy.x * toy.radius, period, 0.45 * period)
    if kind == 1:
        x, y = toy.x * (toy.radius / period), toy.y * (toy.radius / period)
        x, y = x - np.rint(x), y - np.rint(y)
        return np.clip((0.09 - x * x - y * y) * (1.6 * period), 0, 1)
    if kind == 2:
        return np.clip(toy.distance + (0.1 * toy.radius + 0.5), 0, 1)
    return None


def _paint(
    canvas: Array, toy: Toy, dice: Dice, light: tuple[float, float], colours: tuple[Colour, Colour]
) -> None:
    """Paint one toy on the canvas (3, S, S), in place: colour, grain, bevel, highlight, antialiased edge."""
    height, width = toy.mask.shape
    second = _print(dice, toy)
    skin = shaded(colours[0], np.ones((1, 1), np.float32))
    if second is not None:
        skin = blend(skin, shaded(colours[1], np.ones((1, 1), np.float32)), second)
    cells = ((2.0, 2.0), (1.5, 14.0), (12.0, 12.0))[dice.integer(3)]  # felt, brushed wood, clouded plastic
    shade = 0.90 + 0.16 * dice.noise(height, width, *cells)

    # The distance falls away from the edge like a hill; where its slope looks at the light the rim is bright.
    slope = np.zeros_like(toy.distance)
    slope[1:-1, 1:-1] = (toy.distance[1:-1, 2:] - toy.distance[1:-1, :-2]) * (0.5 * light[0])
    slope[1:-1, 1:-1] += (toy.distance[2:, 1:-1] - toy.distance[:-2, 1:-1]) * (0.5 * light[1])
    bevel = max(1.6, toy.radius * dice.uniform(0.05, 0.22))
    rim = np.clip(1 + toy.distance * (1 / bevel), 0, 1)
    shade = shade + 0.36 * slope * rim
    if toy.category in ENGRAVINGS:
        mark = ENGRAVINGS[toy.category](toy.x, toy.y, toy.knobs) * toy.radius
        shade = shade * (1 - 0.38 * np.clip(0.5 - mark, 0, 1))
    gloss = (0, 0, 200, 500)[dice.integer(4)]

    (rows, columns), window = _overlap(toy, canvas.shape[1])
    surface = skin * shade
    if gloss:
        surface += gloss * (np.maximum(slope - 0.25, 0) * rim * (1 - rim))
    cover = np.clip(0.5 - toy.distance, 0, 1)
    canvas[:, rows, columns] = blend(canvas[:, rows, columns], surface[:, *window], cover[window])


def _photograph(dice: Dice, canvas: Array, light: tuple[float, float]) -> Array:
    """The camera: uneven light, dark corners, a tint, sensor noise. Returns uint8 (S, S, 3)."""
    size = canvas.shape[1]
    x = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    y = x[:, None]
    exposure = dice.uniform(0.9, 1.06) + 0.1 * (x * light[0] + y * light[1]) - 0.07 * (x * x + y * y)
    tint = (dice.uniform(0.96, 1.04), 1.0, dice.uniform(0.94, 1.04))
    # The sum of two bytes has a standard deviation of 104.5: nearly normal, and the same everywhere.
    raw = dice.words((6 * size * size + 7) // 8).astype("<u8").view(np.uint8)[: 6 * size * size]
    grain = np.add(*raw.reshape(2, 3, size, size), dtype=np.float32) - 255  # (3, S, S)
    canvas = canvas * shaded(tint, exposure) + grain * np.float32(dice.uniform(1.0, 3.5) / 104.5)
    pixels = np.rint(np.minimum(np.maximum(canvas, 0), 255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def scene(seed: int, split: str, index: int, size: int) -> tuple[Array, list[Instance]]:
    """One picture, uint8 (S, S, 3) RGB, and its toys, bottom to top.

    It depends on the four arguments only: not on other pictures, nor on the machine.
    Raises UserError for a size outside SIZES.
    """
    check_size(size)
    toys, owner = compose(Dice(seed, split, index, "compose"), size)
    dice = Dice(seed, split, index, "paint")
    light = cos_sin(dice.integer(TURN))
    canvas, grounds = GROUNDS[dice.integer(len(GROUNDS))](dice, size)
    colours: list[Colour] = []
    for toy in toys:
        length = dice.uniform(0.1, 0.2) * min(toy.radius, 0.2 * size)
        _cast_shadow(canvas, toy, (round(-length * light[1]), round(-length * light[0])))
        first = _toy_colour(dice, toy.category, grounds, colours)
        second = _toy_colour(dice, CATEGORIES[dice.integer(len(CATEGORIES))], grounds, [*colours, first])
        _paint(canvas, toy, dice, light, (first, second))
        colours.append(first)
    picture = _photograph(Dice(seed, split, index, "camera"), canvas, light)
    return picture, [_instance(toy, owner == k) for k, toy in enumerate(toys)]


def check_size(size: int) -> None:
    """Raise UserError if no picture of size x size pixels can be drawn."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"toybox: size {size} is outside {SIZES[0]} .. {SIZES[1]} pixels; choose one inside.")


def _instance(toy: Toy, visible: Array) -> Instance:
    rows, columns = np.flatnonzero(toy.mask.any(1)), np.flatnonzero(toy.mask.any(0))
    box = toy.left + columns[0], toy.top + rows[0], toy.left + columns[-1] + 1, toy.top + rows[-1] + 1
    return Instance(toy.category, visible, tuple(map(int, box)), toy.full_area)


def pixel_hash(seed: int, split: str, count: int, size: int) -> str:
    """SHA-256 (hex) over the first `count` pictures of a split and their masks."""
    return combined(digest(*scene(seed, split, index, size)) for index in range(count))


def digest(picture: Array, instances: Sequence[Instance]) -> str:
    """SHA-256 (hex) of one picture, the classes in it and their masks."""
    whole = hashlib.sha256(picture.tobytes())
    for instance in instances:
        whole.update(instance.category.encode())
        whole.update(np.packbits(instance.mask).tobytes())
    return whole.hexdigest()


def combined(digests: Iterable[str]) -> str:
    """The pixel hash of pictures whose digests are given in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
