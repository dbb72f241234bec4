"""Random numbers that depend on (key, index) alone, the same on every device, worker and rank.

A generator has a state, and its state depends on who drew before. A hash has none: the number for
anchor 17 of picture 42 at step 100 is what it is, however the pictures are spread over processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def hash32(x: Tensor) -> Tensor:
    """A 32-bit mixer (Wellons' lowbias32) on int64 tensors that hold 0..2^32-1; elementwise."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def fold(*parts: int | Tensor) -> Tensor:
    """One key out of several: `fold(seed, step, image_ids)`; int64, the shape of the largest part."""
    key = torch.zeros((), dtype=torch.int64)
    for part in parts:
        part = torch.as_tensor(part, dtype=torch.int64)
        key = hash32(hash32(key.to(part.device) ^ part) + (part >> 32) + 0x9E3779B9)
    return key


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key: (B,) int64 to (B, count) float32."""
    index = torch.arange(count, device=keys.device)  # (count,)
    bits = hash32(hash32(index + 0x632BE5AB) ^ keys[:, None])  # (B, count)
    # 24 bits are what a float32 holds exactly.
    return (bits >> 8).to(torch.float32) * 2.0**-24
