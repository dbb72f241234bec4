"""Predictions: written down before a cell runs, scored by the next.

my_guess = ...  # how many anchors does a 64 x 64 feature map have?
anchors = make_anchors(...)
predicted("anchors", my_guess, len(anchors))
"""

from __future__ import annotations

import math
from numbers import Real


def predicted(what: str, guess: object, truth: object, *, within: float = 0.0) -> None:
    """Print one line: was the prediction right?

    Args:
        what: what was predicted, the line's first words.
        guess: `...` or None where the student wrote nothing yet: the line then says so, and no more, for
            the truth is worth nothing to who did not guess.
        truth: a number, or anything that `==` compares: a text, a tuple of numbers such as a shape.
        within: how far a number, or each number of a tuple, may lie from the truth and still be right;
            in the truth's unit.

    Never raises for any guess: a wrong one is what this is for.
    """
    if guess is None or guess is ...:
        print(f"{what}: no prediction written")
        return
    guess, truth = _plain(guess), _plain(truth)
    if _agree(guess, truth, 0.0):
        said = "right"
    elif _agree(guess, truth, within):
        said = f"right (within {_text(within)}), you said {_text(guess)}"
    else:
        said = f"you said {_text(guess)}{_kind_wanted(guess, truth)}"
    print(f"{what}: {_text(truth)}, {said}")


def _plain(value: object) -> object:
    """Tensors, arrays and sizes as Python numbers and tuples, which compare and print alike everywhere."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    return value


def _agree(guess: object, truth: object, within: float) -> bool:
    if isinstance(guess, tuple) and isinstance(truth, tuple):
        pairs = zip(guess, truth, strict=False)
        return len(guess) == len(truth) and all(_agree(one, other, within) for one, other in pairs)
    if isinstance(guess, bool) != isinstance(truth, bool):
        return False  # True == 1 in Python; to a reader they are different answers
    if isinstance(guess, str) and isinstance(truth, str):
        return guess.strip().lower() == truth.strip().lower()
    if isinstance(guess, Real) and isinstance(truth, Real):
        try:
            # The last bits of 0.1 + 0.2 are nobody's mistake.
            return abs(guess - truth) <= within or math.isclose(guess, truth, rel_tol=1e-9)
        except OverflowError:  # an int beyond every float
            return guess == truth
    return type(guess) is type(truth) and guess == truth


def _kind_wanted(guess: object, truth: object) -> str:
    """A hint where a guess could not have been right because it is of another kind."""
    for kind, name in ((bool, "True or False"), (Real, "a number"), (tuple, "a tuple"), (str, "a text")):
        if isinstance(truth, kind):
            return "" if isinstance(guess, kind) else f"; {name} is wanted"
    return ""


def _text(value: object) -> str:
    """Four digits are enough to see how far off one was, and the same on every machine."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 10**18 else "a number of more than 18 digits"
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    text = " ".join(str(value).encode(errors="replace").decode().split())
    return text if len(text) <= 60 else text[:57] + "..."
