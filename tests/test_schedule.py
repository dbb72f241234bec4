"""The schedule against numbers that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.engine.schedule import MARGIN, TIMED_PART, learning_rate, peak_rate, steps_that_fit
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


def test_steps_that_fit_waits_for_enough_of_them():
    assert steps_that_fit([5.0] * 3 + [1.0] * 19, limit=134.0, left=100.0) is None
    assert steps_that_fit([5.0] * 3 + [1.0] * 20, limit=135.0, left=100.0 * (1 + MARGIN)) == 100


def test_steps_that_fit_waits_for_a_sixth_of_the_time():
    assert steps_that_fit([1.0] * 40, limit=300.0, left=260.0) is None
    assert steps_that_fit([1.0] * 50, limit=300.0, left=250.0) == int(250 / (1 + MARGIN))


def test_steps_that_fit_believes_the_later_half():
    assert steps_that_fit([1.0] * 43 + [2.0] * 40, limit=200.0, left=85.0) == 40


def test_steps_that_fit_leaves_the_slow_first_ones_out():
    assert steps_that_fit([60.0, 30.0, 10.0] + [2.0] * 20, limit=161.0, left=20.0 * (1 + MARGIN)) == 10


def test_steps_that_fit_decides_early_when_the_time_runs_out():
    assert steps_that_fit([4.0], limit=10.0, left=6.0) == 1
    assert steps_that_fit([4.0, 4.0], limit=10.0, left=2.0) == 0
    assert steps_that_fit([4.0, 4.0], limit=7.0, left=-1.0) == 0


@given(
    durations=st.lists(st.floats(0.01, 10.0), min_size=23, max_size=40),
    left=st.floats(0.0, 1e5),
)
def test_steps_that_fit_do_fit(durations, left):
    """As long as later steps are on average like those that were timed."""
    timed = durations[3:][-20:]
    steps = steps_that_fit(durations, left / (1 - TIMED_PART) + 1, left)
    assert steps * sum(timed) / len(timed) <= left
