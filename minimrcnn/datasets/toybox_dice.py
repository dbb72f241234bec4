"""Random numbers that are the same on every machine: the dice of the toybox.

Raw 64-bit PCG64 words, which NumPy keeps stable (its distributions it may change), and from them
integers, floats and smooth noise by operations that IEEE 754 fixes to the last bit.
"""

from __future__ import annotations

import hashlib

import numpy as np

VERSION = 2  # Part of every random seed: a change of the generator must change it and the committed hash.


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

    def words(self, count: int) -> np.ndarray:
        """`count` raw 64-bit words, uint64."""
        return self._bits.random_raw(count)

    def noise(self, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
        """Smooth noise in [0, 1), float32 (height, width): a random lattice, blended between its points.

        Cells are in pixels; long flat cells give wood grain, square ones give mottle.
        """
        rows, lower, row_weight = _lattice(height, cell_y)
        columns, right, column_weight = _lattice(width, cell_x)
        words = self.words(rows * columns) >> np.uint64(40)  # 24 bits fill a float32 exactly
        lattice = words.astype(np.float32).reshape(rows, columns) * np.float32(2**-24)
        wide = lattice[:, right] + (lattice[:, right + 1] - lattice[:, right]) * column_weight
        return wide[lower] + (wide[lower + 1] - wide[lower]) * row_weight[:, None]


def _lattice(pixels: int, cell: float) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of lattice points, and for each pixel the point before it and the smooth weight of the next."""
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) / np.float32(cell)
    before = position.astype(np.int64)
    t = position - before.astype(np.float32)
    return int(before[-1]) + 2, before, t * t * (3 - 2 * t)
