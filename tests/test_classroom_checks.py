"""check(name, function): its one line for every answer that a student may come up with."""

from __future__ import annotations

import itertools
import re
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from minimrcnn.classroom import check, checking, inputs, stopping
from minimrcnn.classroom.chapters import all_exercises
from minimrcnn.classroom.diagnosis import verdict
from minimrcnn.classroom.exercise import Exercise, planted
from minimrcnn.classroom.stopping import TimeUp, time_limit


def _inputs(g):
    yield inputs.signed(g, 3, 4), 2.0
    yield inputs.signed(g, 2, 5), -1.5
    yield inputs.signed(g, 0, 4), 1.0


def scaled(values, factor, *, added=0.0, absolute=False):
    values = values.abs() if absolute else values
    return values * factor + added


SCALED = Exercise(
    name="scaled",
    chapter=3,
    difficulty=1,
    minutes=5,
    stub='def scaled(values, factor):\n    """values (B, N) times factor: (B, N)."""',
    reference=scaled,
    inputs=_inputs,
    others=(lambda values, factor: [[v * factor for v in row] for row in values.tolist()],),
    mistakes=(
        planted("something is added", scaled, added=1.0),
        planted("the sign is lost", scaled, absolute=True),
    ),
    groups=lambda values, factor: {"rows of a later picture": torch.arange(len(values)) > 0},
    batched=(0,),
    seconds=1.0,
)
PAIR = Exercise(
    name="pair",
    chapter=3,
    difficulty=1,
    minutes=5,
    stub='def pair(values):\n    """The rows above 0 and the others, two lists of rows in any order."""',
    reference=lambda values: ((values > 0).nonzero()[:, 0], (values <= 0).nonzero()[:, 0]),
    inputs=lambda g: iter([(inputs.signed(g, 9),), (inputs.signed(g, 4),)]),
    others=(),
    mistakes=(planted("the two are swapped", lambda v: ((v <= 0).nonzero()[:, 0], (v > 0).nonzero()[:, 0])),),
    canonical=lambda pair: tuple(rows.sort().values for rows in pair),
)


def plain(value, wanted):
    """An exercise without arguments."""
    return Exercise(
        name="plain", chapter=3, difficulty=1, minutes=1, stub='def plain(n):\n    """One."""',
        reference=lambda n: wanted, inputs=lambda g: iter([(1,)]), others=(), mistakes=(),
    ), lambda n: value  # fmt: skip


# ---------------------------------------------------------------- right


@pytest.mark.parametrize(
    "function",
    [
        scaled,
        *SCALED.others,
        lambda v, f: (v * f).double(),
        lambda v, f: (v * f).numpy(),
        lambda v, f: list(v * f),
        lambda v, f: (v * f).to_sparse(),
        lambda v, f: v.clone().requires_grad_() * f,
        lambda values, factor, more=3: values * factor,
        lambda *arguments: arguments[0] * arguments[1],
    ],
)
def test_any_right_answer_is_ok(function):
    assert verdict(SCALED, function) == "ok"


def test_prints_and_warnings_and_random_numbers_do_not_count(capsys):
    def chatty(values, factor):
        print("values", values)
        print("oh", file=sys.stderr)
        warnings.warn("hm", stacklevel=1)
        torch.rand(7)
        return values * factor

    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    assert verdict(SCALED, chatty) == "ok"
    assert torch.rand(1) == first
    assert capsys.readouterr() == ("", "")


def test_answers_in_another_order_are_ok_where_the_order_does_not_matter():
    rows = PAIR.reference
    assert verdict(PAIR, lambda v: tuple(r.flip(0) for r in rows(v))) == "ok"
    assert verdict(PAIR, lambda v: [r.tolist() for r in rows(v)]) == "ok"
    assert verdict(PAIR, lambda v: rows(v)[::-1]) == "the two are swapped"


# ---------------------------------------------------------------- not written yet


def _stub(values, factor):
    raise NotImplementedError()


def _stub_with_a_text(values, factor):
    raise NotImplementedError("later")


@pytest.mark.parametrize(
    "function",
    [_stub, _stub_with_a_text, lambda v, f: None, lambda v, f: ..., lambda v, f: (None, None), None, ...],
)
def test_a_stub_is_not_written_yet(function):
    assert verdict(SCALED, function) == "not written yet"


# ---------------------------------------------------------------- wrong


def _in_place(values, factor):
    values *= factor
    return values


def _raises(values, factor):
    return values.shape[7] * factor


def _counter():
    calls = itertools.count()
    return lambda values, factor: values * factor + next(calls)


def _nan(values, factor):
    return torch.where(values > 0.5, torch.nan, values * factor)


def _only_first(values, factor):
    out = values * factor
    out[1:] += 0.25
    return out


def _mixes(values, factor):
    return values * factor + (len(values) > 1) * values.mean()


def _not_implemented_in_torch(values, factor):
    return torch.bincount(values[0])


def _square(values, factor):
    return (values * factor) ** 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda v, f: v * f + 1, "something is added"),
        (lambda v, f: [[abs(x) * f for x in row] for row in v.tolist()], "the sign is lost"),
        (_in_place, "changes its input in place: values"),
        (_raises, "raises IndexError: .*line [0-9]+: return values.shape\\[7\\] \\* factor"),
        (_counter(), "gives another answer when it is called again"),
        (_nan, "gives NaN in [0-9]+ of 12 places"),
        (_mixes, "mixes the pictures of a batch: each of them alone is right"),
        (_square, "gives .* where the answer is .* at \\[0, 0\\], and is wrong in .* of 12 places"),
        (lambda v, f: (v * f).T, "gives shape \\(4, 3\\) where \\(3, 4\\) is wanted: transposed"),
        (lambda v, f: (v * f)[:, :2], "gives shape \\(3, 2\\) where \\(3, 4\\) is wanted"),
        (lambda v, f: (v * f).long(), "gives int64: the fractions are lost"),
        (lambda v, f: "no", "gives text where numbers are wanted"),
        (lambda v, f: {"a": 1}, "gives a dict where numbers are wanted"),
        (lambda v, f: object(), "gives a value of type object where numbers are wanted"),
        (lambda v, f: v / 0, "gives infinity in"),
        (lambda v: v, "cannot be called as scaled\\(values, factor\\)"),
        (3, "is not a function"),
        (_not_implemented_in_torch, "raises NotImplementedError: .*not implemented for"),
        (lambda v, f: (x for x in v), "gives a value of type generator where numbers are wanted"),
        (lambda v, f: torch.complex(v, v), "gives complex numbers where real ones are wanted"),
        (lambda v, f: sys.exit(), "ends the program with exit\\(\\)"),
        (lambda v, f: [][0], "raises IndexError: list index out of range"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(function, message):
    said = verdict(SCALED, function)
    assert re.match(message, said), said
    assert "\n" not in said


def test_rows_of_one_kind_that_are_wrong_are_told():
    said = verdict(replace(SCALED, batched=()), _only_first)
    assert said.startswith("only rows of a later picture are wrong: gives ")


def test_of_two_mistakes_the_first_is_told():
    def twice_wrong(values, factor):
        values[-1]  # fails for no rows
        return values * factor + 1

    def once_wrong(values, factor):
        values[-1]
        return values * factor

    assert verdict(SCALED, twice_wrong) == "something is added"
    assert verdict(SCALED, once_wrong).startswith("raises IndexError")


@pytest.mark.parametrize("name", ["assign_levels", "match"])
def test_right_numbers_in_a_wrong_dtype_are_told_as_that(name):
    """And not as a planted mistake that gives the right numbers for the first input."""
    exercise = all_exercises()[name]
    said = verdict(exercise, lambda *arguments: exercise.reference(*arguments).float())
    assert said.startswith("gives float32 where whole numbers (int64) are wanted")


def test_a_wrong_answer_says_for_which_input():
    assert verdict(SCALED, _square).endswith("(for values (3, 4), factor 2)")


@pytest.mark.parametrize(
    ("value", "wanted", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "ok"),
        ([1, 2], [1, 2, 3], "gives 2 values where 3 are wanted"),
        ([1.0, 2.0], [1, 2], "gives float64 where whole numbers (int64) are wanted"),
        (np.array([1, 2], dtype=np.int32), torch.tensor([1, 2]), "ok"),
        ([1, 0], torch.tensor([True, False]), "gives int64 where True and False (bool) are wanted"),
        ([True, False], torch.tensor([True, False]), "ok"),
        (1, 1.0, "ok"),
        (torch.tensor([1.0]), 1.0, "gives shape (1,) where () is wanted"),
        ("abc", "abc", "ok"),
        ("abd", "abc", "gives 'abd' where the answer is 'abc'"),
        (b"abc", "abc", "gives bytes where text is wanted"),
        ([], torch.zeros(0, 4), "ok"),
        ({"a": 1}, {"a": 1}, "ok"),
        ({"b": 1}, {"a": 1}, "gives the keys ['b'] where the keys ['a'] are wanted"),
        (torch.ones(2), (torch.ones(2), torch.ones(1)), "gives one tensor (2,) where 2 results are wanted"),
        (([1.0], [0.0]), (torch.ones(1), torch.ones(1)), "gives 0 where the answer is 1 at [0] in result 2"),
    ],
)  # fmt: skip
def test_the_form_of_an_answer(value, wanted, message):
    assert verdict(*plain(value, wanted)).split(" (for")[0] == message


# ---------------------------------------------------------------- right, but without a gradient

TRAINED = replace(SCALED, gradient=(0,))
BOTH = Exercise(
    name="both",
    chapter=3,
    difficulty=1,
    minutes=5,
    stub='def both(a, b):\n    """The softmax of a * b."""',
    reference=lambda a, b: (a * b).softmax(dim=0),
    inputs=lambda g: iter([(inputs.signed(g, 4), inputs.signed(g, 4))]),
    others=(),
    mistakes=(),
    gradient=(0, 1),
)
CUT = "detach(), item(), no_grad(), NumPy or a copy cuts it off"


@pytest.mark.parametrize(
    "function",
    [
        scaled,
        lambda v, f: list(v * f),
        lambda v, f: (v * f).double(),
        lambda v, f: [torch.stack([x * f for x in row]) for row in v] if len(v) else v,
    ],
)
def test_an_answer_that_the_gradient_comes_through_is_ok(function):
    assert verdict(TRAINED, function) == "ok"
    with torch.no_grad():
        assert verdict(TRAINED, function) == "ok"


@pytest.mark.parametrize(
    "function",
    [
        lambda v, f: v.detach() * f,
        lambda v, f: (v * f).data,
        lambda v, f: torch.no_grad()(scaled)(v, f),
        lambda v, f: torch.tensor(v.tolist()).reshape(v.shape) * f,
        SCALED.others[0],
        lambda v, f: v.detach() * f + 0 * v,
    ],
)
def test_an_answer_that_hides_the_gradient_is_told(function):
    assert verdict(SCALED, function) == "ok"
    assert verdict(TRAINED, function) == f"right numbers, but no gradient reaches `values`: {CUT}"


def test_an_answer_that_fails_with_a_gradient_is_told_with_its_line():
    said = verdict(TRAINED, lambda v, f: torch.from_numpy(v.numpy() * f))
    assert said.startswith("right numbers, but no gradient reaches `values`: raises RuntimeError: ")
    assert re.search(r"\(line [0-9]+: said = verdict\(TRAINED", said)


def test_each_argument_needs_its_own_gradient():
    assert verdict(BOTH, BOTH.reference) == "ok"  # although a softmax sums to 1
    words = "right numbers, but no gradient reaches"
    assert verdict(BOTH, lambda a, b: (a * b.detach()).softmax(dim=0)) == f"{words} `b`: {CUT}"
    assert verdict(BOTH, lambda a, b: (a * b).softmax(dim=0).detach()) == f"{words} `a` and `b`: {CUT}"


def test_wrong_numbers_are_told_before_the_gradient():
    assert verdict(TRAINED, lambda v, f: v.detach() * f + 1) == "something is added"


# ---------------------------------------------------------------- endless


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no SIGALRM: nothing stops a loop")
@pytest.mark.parametrize("stubborn", [False, True], ids=["plain", "catches everything"])
def test_an_endless_loop_is_stopped(stubborn):
    def endless(values, factor):
        caught = 0
        while True:
            try:
                print("round and round")
            except:  # noqa: E722
                caught += 1
                if not stubborn or caught > 1:
                    raise

    began = time.perf_counter()
    before = signal.getsignal(signal.SIGALRM)
    assert verdict(SCALED, endless) == "does not come to an end: stopped after 1 s"
    assert time.perf_counter() - began < 10
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no SIGALRM: nothing stops a loop")
def test_the_alarm_is_off_after_the_block():
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(TimeUp), time_limit(0.05):
        time.sleep(5)


def test_where_nothing_can_stop_a_loop_that_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(stopping, "_said", False)
    said = []
    thread = threading.Thread(target=lambda: said.extend(verdict(SCALED, scaled) for _ in range(2)))
    thread.start()
    thread.join()
    assert said == ["ok", "ok"]
    assert capsys.readouterr().err.count("interrupt the kernel") == 1


# ---------------------------------------------------------------- check


@pytest.fixture
def course(monkeypatch):
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    monkeypatch.setattr(checking, "all_exercises", lambda: {"scaled": SCALED, "pair": PAIR})


@pytest.mark.parametrize(
    ("name", "function", "line"),
    [
        ("scaled", scaled, "scaled: ok\n"),
        ("scaled", _stub, "scaled: not written yet\n"),
        ("scaled", lambda v, f: v * f + 1, "scaled: something is added\n"),
        ("scalled", scaled, "scalled: there is no exercise of this name; did you mean scaled?\n"),
        ("xyz", scaled, "xyz: there is no exercise of this name\n"),
        (7, scaled, "7: there is no exercise of this name\n"),
    ],
)
def test_check_prints_one_line(course, capsys, name, function, line):
    assert check(name, function) is None
    assert capsys.readouterr().out == line


def test_under_nbgrader_a_failing_check_raises(course, capsys, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    check("scaled", scaled)
    with pytest.raises(AssertionError, match="scaled: not written yet"):
        check("scaled", _stub)
    assert capsys.readouterr().out == "scaled: ok\nscaled: not written yet\n"


def test_ctrl_c_is_not_swallowed():
    def interrupted(values, factor):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict(SCALED, interrupted)


def test_the_inputs_are_the_same_each_time():
    first, second = SCALED.cases(), SCALED.cases()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
