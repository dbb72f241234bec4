"""Random numbers that are a function of their key."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.randomness import fold, hash32, uniform

MASK = 0xFFFFFFFF


def plain_hash(x: int) -> int:
    """lowbias32 in Python's integers, which do not overflow."""
    x &= MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def plain_fold(*parts: int) -> int:
    key = 0
    for part in parts:
        key = plain_hash(plain_hash(key ^ part) + (part >> 32) + 0x9E3779B9)
    return key


def plain_uniform(key: int, index: int) -> float:
    return (plain_hash(plain_hash(index + 0x632BE5AB) ^ key) >> 8) / 2**24


@given(st.integers(0, 2**32 - 1))
def test_hash_is_plain_arithmetic(x):
    assert hash32(torch.tensor(x)).item() == plain_hash(x)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=4))
def test_fold_is_plain_arithmetic(parts):
    assert fold(*parts).item() == plain_fold(*parts)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_uniform_is_plain_arithmetic(key, count):
    drawn = uniform(torch.tensor([key]), count)[0].tolist()
    assert drawn == [plain_uniform(key, i) for i in range(count)]


def test_committed_numbers():
    """These decide every sample and flip of every run: a change of them changes all results."""
    assert hash32(torch.tensor([0, 1, 2, MASK])).tolist() == [0, 1753845952, 3507691905, 1734902346]
    assert [fold(0).item(), fold(1, 2, 3).item(), fold(2**40).item()] == [33350994, 3016347162, 416825633]
    assert uniform(torch.tensor([0, 12345]), 2).tolist() == [
        [0.9177989363670349, 0.6328717470169067],
        [0.48383188247680664, 0.8954851031303406],
    ]


def test_fold_of_tensors_is_that_of_each():
    ids = torch.tensor([3, 4, 2**40])
    assert fold(7, ids, 1).tolist() == [fold(7, int(i), 1).item() for i in ids]


def test_numbers_are_spread_evenly():
    drawn = uniform(fold(0, torch.arange(200)), 1000)  # (200, 1000)
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    # Of 200,000 numbers the mean has a deviation of .29 / 447 = .00065, a tenth of them one of 134.
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(drawn.var()) == pytest.approx(1 / 12, abs=0.002)
    tenths = torch.histc(drawn, bins=10, min=0, max=1)
    assert float((tenths - 20_000).abs().max()) < 600
    # Neither neighbours within a key nor the same place of neighbouring keys go together.
    for a, b in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1])):
        together = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(together)) < 0.01


def test_different_keys_differ_and_equal_keys_agree():
    keys = torch.stack([fold(seed, step, 5) for seed in range(8) for step in range(8)])
    assert len(keys.unique()) == 64
    assert torch.equal(uniform(keys, 9), uniform(keys.flip(0), 9).flip(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same():
    keys = fold(3, torch.arange(50))
    assert torch.equal(uniform(keys.cuda(), 500).cpu(), uniform(keys, 500))
