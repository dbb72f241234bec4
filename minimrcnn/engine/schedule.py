"""Learning rate and picture size as functions of the step, the number of steps as a function of the time."""

from __future__ import annotations

import math
import statistics

from minimrcnn.config import Architecture
from minimrcnn.recipes import Recipe

WARM_STEPS = 3  # the first steps fill caches, choose kernels, start workers: they are not timed
TIMED_STEPS = 20
TIMED_PART = 1 / 6  # of the time limit: by then proposals hit objects, and steps cost what they will cost
MARGIN = 0.03


def peak_rate(recipe: Recipe) -> float:
    """The linear rule (Goyal et al. 2017): k times the pictures a step, k times the rate."""
    return recipe.lr * recipe.batch_size / recipe.base_batch


def learning_rate(step: int, recipe: Recipe, steps: float) -> float:
    """The rate of a step, counted from 0, in a run of `steps` steps.

    `steps` may be infinity, while a time limit has not yet fixed it: the warm-up never depends on it,
    and behind the warm-up an endless run stays at the peak.
    """
    peak = peak_rate(recipe)
    if step < recipe.warmup:  # linear, from a thousandth
        return peak * (0.001 + 0.999 * step / recipe.warmup)
    progress = (step - recipe.warmup) / (steps - recipe.warmup)
    if recipe.schedule == "cosine":  # from the peak to 0, SGDR (Loshchilov and Hutter 2017) without restart
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "linear":  # from the peak to 0 in a straight line
        return peak * (1.0 - progress)
    # Half a step of slack: 60/90 * 90000 need not be 60000 in floating point.
    passed = sum(step + 0.5 >= milestone * steps for milestone in recipe.milestones)
    return peak * 0.1**passed


def growth(recipe: Recipe, architecture: Architecture) -> list[tuple[float, int]]:
    """The short sides of a run's pictures, each with the part of the steps at which it ends.

    Small pictures cost less, and teach the first things as well ("progressive resizing", fast.ai 2018). They
    grow by the architecture's divisor, in equal numbers of steps. The last, 0, stands for the whole size.
    """
    sides = range(recipe.first_size, architecture.min_size[-1], architecture.divisor)
    growing = [((i + 1) / len(sides) * recipe.grown_at, side) for i, side in enumerate(sides)]
    return [*growing, (1.0, 0)] if recipe.first_size else [(1.0, 0)]


def short_side(step: int, sizes: list[tuple[float, int]], steps: float) -> int:
    """The short side of the pictures of a step, counted from 0, in a run of `steps` steps; 0: the whole size.

    While a time limit has not fixed the number of steps (infinity), the sizes take turns: each is timed.
    """
    if math.isinf(steps):
        return sizes[step % len(sizes)][1]
    return next(side for end, side in sizes if step < end * steps or end == 1.0)


def steps_that_fit(
    durations: list[tuple[int, float]], limit: float, left: float, done: int, sizes: list[tuple[float, int]]
) -> int | None:
    """How many more steps fit into `left` seconds, or None while that is too early to say.

    Args:
        durations: short side and seconds of each step of this process, the first `WARM_STEPS` included.
        limit: seconds of the whole run. left: those that remain. done: steps of the run so far.
        sizes: of the run's pictures, from `growth`.
    """
    timed = durations[WARM_STEPS:] or durations
    timed = timed[-max(len(timed) // 2, TIMED_STEPS) :]
    cost = {}
    for _, side in sizes:
        seconds = [spent for of, spent in timed if of == side] or [spent for _, spent in timed]
        # The median forgives one hiccup; the mean knows that pictures differ. The dearer one counts.
        cost[side] = (1.0 + MARGIN) * max(statistics.median(seconds), statistics.fmean(seconds))
    early = len(durations) < WARM_STEPS + TIMED_STEPS or left > (1.0 - TIMED_PART) * limit
    if early and left > 2.0 * max(cost.values()):
        return None
    more = max(0, math.floor(left / max(cost.values())))
    while seconds_of(done, done + more + 1, sizes, cost) <= left:
        more += 1
    return more


def seconds_of(done: int, steps: int, sizes: list[tuple[float, int]], cost: dict[int, float]) -> float:
    """Seconds of the steps `done`, ..., `steps` - 1 of a run of `steps`, by what each size costs."""
    begin, seconds = float(done), 0.0
    for end, side in sizes:
        seconds += max(end * steps - begin, 0.0) * cost[side]
        begin = max(end * steps, begin)
    return seconds
