"""Predictions are scored in one line that is the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimrcnn.classroom.predicting import predicted

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("guess", "truth", "within", "line"),
    [
        (..., 900, 0, "no prediction written"),
        (None, 900, 0, "no prediction written"),
        (12288, 12288, 0, "12,288, right"),
        (4096, 12288, 0, "12,288, you said 4,096"),
        (12288.0, 12288, 0, "12,288, right"),
        (0.9, 0.83, 0.1, "0.83, right (within 0.1), you said 0.9"),
        (0.95, 0.83, 0.1, "0.83, you said 0.95"),
        (0.1 + 0.2, 0.3, 0, "0.3, right"),
        ("P4", "P4", 0, "P4, right"),
        (" p4 ", "P4", 0, "P4, right"),
        ("four", 4, 0, "4, you said four; a number is wanted"),
        (True, False, 0, "False, you said True"),
        (1, True, 0, "True, you said 1; True or False is wanted"),
        ((2, 3), (2, 3), 0, "(2, 3), right"),
        ([2, 3], (2, 4), 0, "(2, 4), you said (2, 3)"),
        ((2,), (2, 4), 0, "(2, 4), you said (2)"),
        ((1, 4), torch.zeros(1, 4).shape, 0, "(1, 4), right"),
        (1.5, torch.tensor(1.5), 0, "1.5, right"),
        (np.float32(0.5), 0.5, 0, "0.5, right"),
        (float("nan"), 2.0, 0.5, "2, you said nan"),
        (10**400, 2.0, 0.5, "2, you said a number of more than 18 digits"),
        ("two\nlines", 1, 0, "1, you said two lines; a number is wanted"),
    ],
)
def test_says_in_one_line(guess, truth, within, line, capsys) -> None:
    predicted("x", guess, truth, within=within)
    assert capsys.readouterr().out == f"x: {line}\n"


@given(ANYTHING, ANYTHING)
def test_no_guess_raises(guess: object, truth: object) -> None:
    predicted("x", guess, truth, within=0.5)
