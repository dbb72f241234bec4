"""Matching and sampling against torchvision's Matcher, and what a sample promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher

from minimrcnn.matching import BELOW, BETWEEN, match, sample

seeds = st.integers(0, 2**31 - 1)


def overlaps(truths: int, candidates: int, seed: int, levels: int) -> torch.Tensor:
    """IoUs that take few values, so that ties are common; each truth touches some candidate."""
    generator = torch.Generator().manual_seed(seed)
    overlap = torch.randint(levels + 1, (truths, candidates), generator=generator) / levels
    overlap[:, 0] = overlap[:, 0].clamp(min=1 / levels)
    return overlap


@given(seeds, st.integers(1, 6), st.integers(1, 30), st.sampled_from([(0.7, 0.3), (0.5, 0.5)]), st.booleans())
def test_match_is_torchvisions(seed, truths, candidates, thresholds, keep_best):
    overlap = overlaps(truths, candidates, seed, 10)
    theirs = Matcher(*thresholds, allow_low_quality_matches=keep_best)(overlap)
    assert torch.equal(match(overlap, *thresholds, keep_best), theirs)


@given(seeds, st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_match_of_a_padded_batch_is_that_of_each(seed, truths, padding, keep_best):
    overlap = torch.stack([overlaps(truths, 12, seed + i, 10) for i in range(3)])
    padded = torch.cat([overlap, torch.full((3, padding, 12), -1.0)], dim=1)
    each = torch.stack([match(o, 0.7, 0.3, keep_best) for o in overlap])
    assert torch.equal(match(padded, 0.7, 0.3, keep_best), each)


def test_match_by_hand():
    overlap = torch.tensor([[0.8, 0.2, 0.4, 0.4, 0.0], [0.75, 0.6, 0.1, 0.4, 0.29]])
    # 0: .8 >= .7, object 0. 1: best of object 1 at .6? no, its best is .75; .6 is between. 4: background.
    assert match(overlap, 0.7, 0.3, False).tolist() == [0, BETWEEN, BETWEEN, BETWEEN, BELOW]
    # Candidate 0 is the best of both objects and goes to the one it overlaps most.
    assert match(overlap, 0.7, 0.3, True).tolist() == [0, BETWEEN, BETWEEN, BETWEEN, BELOW]


def test_the_best_of_an_object_is_kept_however_low_and_with_its_ties():
    overlap = torch.tensor([[0.2, 0.2, 0.1], [0.0, 0.9, 0.0]])
    assert match(overlap, 0.7, 0.3, False).tolist() == [BELOW, 1, BELOW]
    # Candidate 1 ties for object 0 but belongs to object 1, which it overlaps more.
    assert match(overlap, 0.7, 0.3, True).tolist() == [0, 1, BELOW]


def test_an_object_that_nothing_touches_matches_nothing():
    """Here torchvision's Matcher matches every candidate, since all of them tie at 0."""
    assert match(torch.zeros(1, 4), 0.7, 0.3, True).tolist() == [BELOW] * 4
    assert Matcher(0.7, 0.3, True)(torch.zeros(1, 4)).tolist() == [0] * 4


def test_no_object_makes_all_background():
    assert match(torch.full((2, 1, 5), -1.0), 0.7, 0.3, True).tolist() == [[BELOW] * 5] * 2


# -- sampling ------------------------------------------------------------------------------------------


@st.composite
def matchings(draw):
    """(B, N) results of matching, in which any of the three kinds may be missing."""
    pictures, candidates = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    kinds = draw(st.sampled_from([(-2, 3), (-1, 0), (0, 3), (-2, 0), (-2, -1)]))
    generator = torch.Generator().manual_seed(draw(seeds))
    matched = torch.randint(kinds[0], kinds[1], (pictures, candidates), generator=generator)
    return matched, torch.rand(pictures, candidates, generator=generator)


@given(matchings(), st.integers(1, 48), st.sampled_from([0.25, 0.5, 1.0]))
def test_samples_keep_their_promises(matching, number, fraction):
    matched, random = matching
    chosen = sample(matched, random, number, fraction)
    size = min(number, matched.shape[1])
    assert chosen.index.shape == chosen.matched.shape == chosen.positive.shape == chosen.valid.shape
    assert chosen.index.shape == (len(matched), size)
    for i in range(len(matched)):
        valid, positive = chosen.valid[i], chosen.positive[i]
        rows = chosen.index[i][valid]
        assert len(rows.unique()) == len(rows)
        assert bool((matched[i][rows] != BETWEEN).all())  # padding holds BETWEEN: never chosen
        assert torch.equal(positive[valid], matched[i][rows] >= 0)
        assert not bool(positive[~valid].any())
        # Valid rows first, positives first among them.
        assert bool((valid[:-1] | ~valid[1:]).all()) and bool((positive[:-1] | ~positive[1:]).all())
        assert torch.equal(chosen.matched[i][positive], matched[i][chosen.index[i][positive]])
        # The counts are torchvision's.
        theirs = BalancedPositiveNegativeSampler(number, fraction)([matched[i] + 1])
        assert int(positive.sum()) == int(theirs[0][0].sum())
        assert int(valid.sum()) == min(int(theirs[0][0].sum() + theirs[1][0].sum()), size)


@given(matchings())
def test_the_largest_random_numbers_are_chosen(matching):
    matched, random = matching
    chosen = sample(matched, random, 8, 0.5)
    for i in range(len(matched)):
        for kind, rows in (
            (matched[i] >= 0, chosen.index[i][chosen.positive[i]]),
            (matched[i] == BELOW, chosen.index[i][chosen.valid[i] & ~chosen.positive[i]]),
        ):
            left = kind.clone()
            left[rows] = False
            if len(rows) and bool(left.any()):
                assert random[i][rows].min() >= random[i][left].max()


def test_negatives_fill_the_place_of_missing_positives():
    matched = torch.tensor([[0, -1, -1, -1, -1, -1, -2, -2]])
    chosen = sample(matched, torch.linspace(0, 0.9, 8)[None], 4, 0.5)
    assert chosen.index.tolist() == [[0, 5, 4, 3]]
    assert chosen.positive.tolist() == [[True, False, False, False]]


def test_too_many_positives_leave_the_rest_empty():
    chosen = sample(torch.zeros(1, 6, dtype=torch.int64), torch.rand(1, 6), 4, 0.5)
    assert chosen.valid.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("number", [1, 3])
def test_fewer_candidates_than_wanted_give_a_shorter_sample(number):
    chosen = sample(torch.full((2, number), BELOW), torch.rand(2, number), 256, 0.5)
    assert chosen.index.shape == (2, number) and bool(chosen.valid.all())
