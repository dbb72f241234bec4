"""The schedule against numbers that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.config import ARCHITECTURES
from minimrcnn.engine.schedule import (
    MARGIN,
    TIMED_PART,
    growth,
    learning_rate,
    peak_rate,
    short_side,
    steps_that_fit,
)
from minimrcnn.recipes import CONFIGS, Recipe

STEPS = Recipe(lr=1.0, base_batch=1, batch_size=1, warmup=10, milestones=(0.5, 0.75))
COSINE = replace(STEPS, schedule="cosine")
LINEAR = replace(STEPS, schedule="linear")


def test_linear_rule():
    assert peak_rate(Recipe(lr=0.02, base_batch=16, batch_size=2)) == pytest.approx(0.0025)
    assert peak_rate(Recipe(lr=0.02, base_batch=16, batch_size=32)) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.001), (5, 0.5005), (9, 0.9001), (10, 1), (49, 1), (50, 0.1), (74, 0.1), (75, 0.01), (99, 0.01)],
)
def test_steps(step, rate):
    assert learning_rate(step, STEPS, 100) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.001), (10, 1), (40, 0.75), (55, 0.5), (70, 0.25), (100, 0)])
def test_cosine(step, rate):
    # behind the warm-up, a third of the way is 60 degrees: (1 + 1/2) / 2
    assert learning_rate(step, COSINE, 100) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.001), (10, 1), (40, 2 / 3), (55, 0.5), (70, 1 / 3), (100, 0)]
)
def test_linear(step, rate):
    assert learning_rate(step, LINEAR, 100) == pytest.approx(rate)


def test_no_warmup():
    assert learning_rate(0, replace(STEPS, warmup=0), 100) == 1


def test_milestones_of_the_published_recipes():
    """60/90 of 90,000 steps is step 60,000 to the step, whatever floating point makes of 60/90."""
    recipe = CONFIGS["detectron2"].recipe
    rates = [learning_rate(step, recipe, recipe.steps) for step in (59_999, 60_000, 79_999, 80_000)]
    assert rates == pytest.approx([0.02, 0.002, 0.002, 0.0002])


@given(
    step=st.integers(0, 500),
    steps=st.integers(501, 10_000),
    recipe=st.sampled_from([STEPS, COSINE, LINEAR]),
)
def test_the_rate_is_positive_and_never_above_the_peak(step, steps, recipe):
    assert 0 < learning_rate(step, replace(recipe, lr=0.02), steps) <= 0.02


@given(step=st.integers(0, 9), steps=st.integers(10, 10_000), recipe=st.sampled_from([STEPS, COSINE, LINEAR]))
def test_the_warmup_does_not_depend_on_the_number_of_steps(step, steps, recipe):
    assert learning_rate(step, recipe, steps) == learning_rate(step, recipe, math.inf)


@pytest.mark.parametrize("recipe", [STEPS, COSINE, LINEAR])
def test_an_endless_run_stays_at_the_peak(recipe):
    assert learning_rate(50, recipe, math.inf) == 1


WHOLE = [(1.0, 0)]  # one size from the first step to the last


def fitting(durations: list[float], limit: float, left: float) -> int | None:
    """`steps_that_fit` of a run whose pictures have one size."""
    return steps_that_fit([(0, seconds) for seconds in durations], limit, left, len(durations), WHOLE)


def test_steps_that_fit_waits_for_enough_of_them():
    assert fitting([5.0] * 3 + [1.0] * 19, limit=134.0, left=100.0) is None
    assert fitting([5.0] * 3 + [1.0] * 20, limit=135.0, left=100.0 * (1 + MARGIN)) == 100


def test_steps_that_fit_waits_for_a_sixth_of_the_time():
    assert fitting([1.0] * 40, limit=300.0, left=260.0) is None
    assert fitting([1.0] * 50, limit=300.0, left=250.0) == int(250 / (1 + MARGIN))


def test_steps_that_fit_believes_the_later_half():
    assert fitting([1.0] * 43 + [2.0] * 40, limit=200.0, left=80.0 * (1 + MARGIN)) == 40


def test_steps_that_fit_leaves_the_slow_first_ones_out():
    assert fitting([60.0, 30.0, 10.0] + [2.0] * 20, limit=161.0, left=20.0 * (1 + MARGIN)) == 10


def test_steps_that_fit_decides_early_when_the_time_runs_out():
    assert fitting([4.0], limit=10.0, left=6.0) == 1
    assert fitting([4.0, 4.0], limit=10.0, left=2.0) == 0
    assert fitting([4.0, 4.0], limit=7.0, left=-1.0) == 0


@given(
    durations=st.lists(st.floats(0.01, 10.0), min_size=23, max_size=40),
    left=st.floats(0.0, 1e5),
)
def test_steps_that_fit_do_fit(durations, left):
    """As long as later steps are on average like those that were timed."""
    timed = durations[3:][-20:]
    steps = fitting(durations, left / (1 - TIMED_PART) + 1, left)
    assert steps * sum(timed) / len(timed) <= left


# -- pictures that grow --------------------------------------------------------------------------------

MINI = ARCHITECTURES["mini"]  # 192 px, a divisor of 32
GROWING = Recipe(first_size=96, grown_at=0.75)


def test_growth_is_by_the_divisor_in_equal_parts():
    assert growth(GROWING, MINI) == [(0.25, 96), (0.5, 128), (0.75, 160), (1.0, 0)]
    assert growth(replace(GROWING, first_size=150), MINI) == [(0.375, 150), (0.75, 182), (1.0, 0)]


@pytest.mark.parametrize("first", [0, 192, 500])
def test_no_growth(first):
    assert growth(replace(GROWING, first_size=first), MINI) == WHOLE


def test_short_side_of_each_step():
    sizes = growth(GROWING, MINI)
    assert [short_side(step, sizes, 8) for step in range(8)] == [96, 96, 128, 128, 160, 160, 0, 0]
    assert short_side(9, sizes, 8) == 0  # a step past the end, should a limit have counted too few
    # All in turns while the number is not known, so that each is timed.
    assert [short_side(step, sizes, math.inf) for step in range(5)] == [96, 128, 160, 0, 96]


def test_steps_that_fit_counts_what_each_size_costs():
    sizes = [(0.5, 96), (1.0, 0)]
    durations = [(96, 9.0), (0, 9.0), (96, 9.0)] + [(0, 3.0), (96, 1.0)] * 12
    left = 100.0 * (1 + MARGIN)
    more = steps_that_fit(durations, left / (1 - TIMED_PART) + 1, left, 27, sizes)
    # 27 done, all at the small size's price from now on up to the middle, then at three times that.
    total = 27 + more
    middle = total / 2
    assert max(middle - 27, 0) * 1.0 + (total - max(middle, 27)) * 3.0 <= 100.0
    assert max((total + 1) / 2 - 27, 0) * 1.0 + (total + 1 - max((total + 1) / 2, 27)) * 3.0 > 100.0


def test_a_size_that_was_not_timed_costs_what_the_others_do():
    sizes = [(0.5, 96), (1.0, 0)]
    assert steps_that_fit([(96, 4.0)], limit=10.0, left=6.0, done=1, sizes=sizes) == 1
