"""What an exercise is, and how to write a new one.

A chapter's exercises are a file `chapters/chNN_<topic>.py` that ends in `EXERCISES = (...)`, in the order of
the notebook. It is found by its name; where one grows too long it becomes `chNN_1_...` and `chNN_2_...`.
For each exercise write, in the order in which a reader wants them:

1. the stub: what the student is given, signature and docstring, exactly as the cell of the solution
   notebook begins (`exercises build` fails where the two differ);
2. the reference: the package's function, or torchvision's where there is one, called with the stub's
   arguments;
3. `inputs`: a generator function. It gets a seeded torch.Generator and yields tuples of arguments. Signed
   numbers, height and width unequal, more than one picture, fractions; then the edges that the docstring
   promises something about (nothing at all, equal values, no area). `inputs.py` draws boxes and RoIs;
4. one other right answer at least, as different as can be: loops if the reference is vectorised, lists;
5. two planted mistakes at least, four if the exercise is a part of the model (`parts.py`): what a student
   really writes, each with the one sentence that tells it. A mistake is a variant of the right answer, so
   write one function with a switch for each, and plant it with that switch turned.

A wrong answer is told by these variants: where the student's function gives what a variant gives on every
input, the variant's sentence is printed. So each input set must tell all variants apart from the right
answer and from one another: `python -m minimrcnn exercises audit` fails where it does not. What no
variant explains gets a general sentence (diagnosis.py): an exception, a shape, a dtype, NaN, the rows that
are wrong (`groups`), or the first wrong number.

    def _area_like(box, corners=False, plus=0):  # the answers, right and wrong
        x1, y1, x2, y2 = box
        return x2 * y2 if corners else (x2 - x1 + plus) * (y2 - y1 + plus)


    def _area_inputs(g):
        yield ([1.5, 2.0, 7.0, 4.5],)
        yield (inputs.boxes(g, 1, 30, 50)[0],)


    BOX_AREA = Exercise(
        name="box_area",
        chapter=3,
        difficulty=1,
        minutes=5,
        stub='''
    def box_area(box):
        \"\"\"The area of one box (x1, y1, x2, y2) in square pixels.\"\"\"
    '''.strip(),
        reference=_area_like,
        inputs=_area_inputs,
        others=(lambda box: torch.as_tensor(box)[2:].sub(torch.as_tensor(box)[:2]).prod(),),
        mistakes=(
            planted("x2 and y2 are corners, not width and height", _area_like, corners=True),
            planted("x2 - x1 is the width already: add nothing", _area_like, plus=1),
        ),
    )

    EXERCISES = (BOX_AREA,)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minimrcnn.classroom.stopping import ANSWER_SECONDS

# What nbgrader puts in the place of a solution, so that its release and ours are the same.
NOT_WRITTEN = "    # YOUR CODE HERE\n    raise NotImplementedError()"


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that students give, and the sentence that tells them."""

    message: str
    function: Callable[..., object]


def planted(message: str, function: Callable[..., object], **switches: object) -> Mistake:
    """A mistake made of a function with some of its switches turned."""
    return Mistake(message, partial(function, **switches))


@dataclass(frozen=True)
class Exercise:
    """One function that a student writes."""

    name: str  # of the function; one exercise a name in the whole course
    chapter: int
    difficulty: int  # 1 (a line or two) to 5
    minutes: int  # for somebody who has read the chapter
    stub: str  # signature and docstring
    reference: Callable[..., object]
    inputs: Callable[[torch.Generator], Iterator[tuple]]
    others: tuple[Callable[..., object], ...]  # right as well
    mistakes: tuple[Mistake, ...]
    part: str = ""  # the field of Parts that it can fill
    tolerance: float = 1e-4  # |answer - wanted| <= tolerance * (1 + |wanted|)
    canonical: Callable[[object], object] = lambda answer: answer  # equal answers made the same: sorted rows
    # Kinds of rows of the answer, {"RoIs of a later picture": (R,) bool}: are they the only wrong ones?
    groups: Callable[..., dict[str, Tensor]] | None = None
    # Positions of arguments whose first axis is the batch: is each picture alone right?
    batched: tuple[int, ...] = ()
    # Positions of arguments, tensors of numbers, that a gradient must reach: the answer is trained through.
    gradient: tuple[int, ...] = ()
    seconds: float = ANSWER_SECONDS  # for all inputs together

    @property
    def blank(self) -> str:
        """The cell as the student gets it."""
        return f"{self.stub.rstrip()}\n{NOT_WRITTEN}"

    @property
    def heading(self) -> str:
        """The line that stands over the exercise in its notebook."""
        dots = "●" * self.difficulty + "○" * (5 - self.difficulty)
        return f"**Exercise: `{self.name}`** · difficulty {dots} · about {self.minutes} minutes"

    def cases(self) -> list[tuple]:
        """The arguments of every call of a check: the same ones each time."""
        return list(self.inputs(torch.Generator().manual_seed(zlib.crc32(self.name.encode()))))
