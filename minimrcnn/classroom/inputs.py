"""Random inputs for exercises: signed, fractional, taller or wider than square, of several pictures."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def signed(g: Generator, *shape: int) -> Tensor:
    """Normal numbers, half of them negative: (*shape) float32. A missing ReLU or max shows."""
    return torch.randn(*shape, generator=g)


def uniform(g: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Numbers between low and high: (*shape) float32."""
    return low + (high - low) * torch.rand(*shape, generator=g)


def scores(g: Generator, count: int) -> Tensor:
    """Different probabilities in no order: (count,) float32. Without ties there is one right order."""
    return (torch.randperm(count, generator=g) + 0.5) / max(count, 1)


def boxes(g: Generator, count: int, height: float, width: float, smallest: float = 2.0) -> Tensor:
    """Boxes inside a picture, their sides at least `smallest`: (count, 4) float32 xyxy, fractional."""
    limit = torch.tensor([width, height])
    side = smallest + (limit * 0.7 - smallest) * torch.rand(count, 2, generator=g)  # (count, 2)
    corner = (limit - side) * torch.rand(count, 2, generator=g)
    return torch.cat([corner, corner + side], dim=1)


def rois(
    g: Generator, count: int, pictures: int, height: float, width: float, smallest: float = 2.0
) -> Tensor:
    """Boxes with the number of their picture in front, in no order: (count, 5) float32."""
    picture = torch.arange(count).remainder(pictures)[torch.randperm(count, generator=g)]
    return torch.cat([picture[:, None].float(), boxes(g, count, height, width, smallest)], dim=1)
