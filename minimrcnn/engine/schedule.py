"""The learning rate as a function of the step, and the number of steps as a function of the time."""

from __future__ import annotations

import math
import statistics

from minimrcnn.recipes import Recipe

WARM_STEPS = 3  # the first steps fill caches, choose kernels, start workers: they are not timed
TIMED_STEPS = 20
TIMED_PART = 1 / 6  # of the time limit: by then proposals hit objects, and steps cost what they will cost
MARGIN = 0.05


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


def steps_that_fit(durations: list[float], limit: float, left: float) -> int | None:
    """How many more steps fit into `left` seconds, or None while that is too early to say.

    Args:
        durations: seconds of each step so far, the first `WARM_STEPS` included.
        limit: seconds of the whole run. left: those that remain.
    """
    timed = durations[WARM_STEPS:] or durations
    timed = timed[-max(len(timed) // 2, TIMED_STEPS) :]
    # The median forgives one hiccup; the mean knows that pictures differ. The dearer one counts.
    step = (1.0 + MARGIN) * max(statistics.median(timed), statistics.fmean(timed))
    early = len(durations) < WARM_STEPS + TIMED_STEPS or left > (1.0 - TIMED_PART) * limit
    if early and left > 2.0 * step:
        return None
    return max(0, math.floor(left / step))
