"""Parts of your own in training: which of them are fit for it, and what stands in for the others.

A part that is right may still be unfit: it may hide the gradient of the loss, or take so long that a
training of minutes becomes one of days. Such a part is replaced by the package's, by name and aloud.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from minimrcnn.backbone import STRIDES
from minimrcnn.engine.distributed import Group
from minimrcnn.errors import UserError
from minimrcnn.parts import DEFAULT, NEEDS_GRADIENT, Parts
from minimrcnn.threads import one_thread

SECONDS = 0.25  # that a part may take for one picture of `mini`, which alone trains at some 0.05 s a picture
SIDE, OBJECTS, CHANNELS, CLASSES = 192, 8, 32, 9
# What one picture of `mini` asks of each part: 9,200 anchors, 1,000 proposals before NMS, 32 RoIs for the
# boxes and 16, of four times the bins, for the masks.
ROWS = {
    "iou": 9200,
    "encode": 160,
    "decode": 1000,
    "match": 9200,
    "sample": 9200,
    "nms": 1000,
    "assign_levels": 300,
    "roi_align": 96,
    "mask_target": 16,
    "mask_loss": 16,
    "paste": 10,
}


def own_names(parts: Parts) -> list[str]:
    """The names of the parts that are not the package's."""
    return [f.name for f in fields(Parts) if getattr(parts, f.name) is not getattr(DEFAULT, f.name)]


def usable_parts(parts: Parts, group: Group) -> Parts:
    """`parts` with the package's in the place of those that are unfit to train with; says which and why.

    Raises:
        UserError: a part fails on a small input, or answers in another shape than it should.
    """
    own = own_names(parts)
    if not own:
        return parts
    reasons = {name: unfit(name, getattr(parts, name), group.device) for name in own}
    reasons = group.firsts(reasons)  # clocks differ between processes, and the model must not
    for name, reason in reasons.items():
        if reason:
            group.say(f"{name}: yours {reason}; the package's is used in its place")
    return announced(replace(parts, **{name: getattr(DEFAULT, name) for name in own if reasons[name]}), group)


def parts_of_run(saved: dict, parts: Parts, out: Path, group: Group) -> Parts:
    """The parts that the run `out`, whose checkpoint is `saved`, goes on with: those that it began with.

    Raises:
        UserError: it was trained with a part of your own that `parts` does not have.
    """
    used, given = saved.get("parts", []), own_names(parts)  # none, in a file of before parts were noted
    if missing := [name for name in used if name not in given]:
        raise UserError(
            f"{out} was trained with parts of your own, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not given. Go on from Python, with the same parts: "
            "train(..., resume=True, parts=...); or train anew with another --out."
        )
    for name in given:
        if name not in used:
            group.say(f"{name}: this run began with the package's and goes on with it")
    return announced(Parts(**{name: getattr(parts, name) for name in used}), group)


def announced(parts: Parts, group: Group) -> Parts:
    """The same parts, after saying which are not the package's."""
    if names := own_names(parts):
        group.say(f"parts of your own: {', '.join(names)}")
    return parts


def unfit(name: str, part: Callable, device: torch.device, seconds: float = SECONDS) -> str:
    """Why a part, as the model calls it, is unfit to train with: "has no gradient", "is too slow ..."; or "".

    It is tried on a sixteenth, a quarter and all of what one picture of `mini` asks of it, so that one
    which needs hours is given up within seconds.

    Raises:
        UserError: it fails, or answers in another shape than the package's.
    """
    for rows in (-(-ROWS[name] // 16), -(-ROWS[name] // 4), ROWS[name]):
        arguments = inputs(name, rows, device)
        try:
            answer, took = _timed(name, part, arguments)
            if took > seconds:  # once more: a first call may load or compile something
                answer, took = min((answer, took), _timed(name, part, arguments), key=lambda pair: pair[1])
        except Exception as error:
            raise UserError(
                f"your own {name} fails in the model: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        with torch.no_grad():
            wanted = getattr(DEFAULT, name)(*arguments)
        if type(answer) is not type(wanted) or _shape(answer) != _shape(wanted):
            raise UserError(
                f"your own {name} gives the model {_shape(answer)}, and {_shape(wanted)} is wanted"
            )
        if name in NEEDS_GRADIENT and not _has_gradient(answer, arguments[0]):
            return "has no gradient"
        if took > seconds:
            return f"is too slow: it needs more than {seconds:g} s for a picture of {SIDE} pixels"
    return ""


def _timed(name: str, part: Callable, arguments: tuple) -> tuple[object, float]:
    """What a part answers, and the seconds of this process that it took: other programs do not count.

    One thread: on a busy machine a second one waits in a loop, and its waiting would count.
    """
    began = time.process_time()
    with one_thread(), torch.set_grad_enabled(name in NEEDS_GRADIENT):
        answer = part(*arguments)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return answer, time.process_time() - began


def _shape(answer: object) -> str:
    return f"a tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__


def _has_gradient(answer: Tensor, source: Tensor | list[Tensor]) -> bool:
    """Whether the source, which the answer depends on, would hear of a change of the answer."""
    if not answer.requires_grad:
        return False
    sources = source if isinstance(source, list) else [source]
    gradients = torch.autograd.grad(answer.sum(), sources, allow_unused=True)
    return any(bool(g.isfinite().all() and g.any()) for g in gradients if g is not None)


def inputs(name: str, rows: int, device: torch.device) -> tuple:
    """Arguments for a part as the model calls it, with `rows` boxes, RoIs or masks of one picture."""
    draw = torch.Generator().manual_seed(rows)

    def real(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw).to(device)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=draw).to(device)

    def boxes(*shape: int) -> Tensor:
        corner = 0.75 * SIDE * real(*shape, 2)
        return torch.cat([corner, corner + 4 + 0.2 * SIDE * real(*shape, 2)], dim=-1)  # (..., 4)

    def learned(*shape: int) -> Tensor:
        return real(*shape).requires_grad_()

    def all_alike(*values: int) -> Tensor:
        return torch.tensor([values], device=device).expand(rows, -1)  # (rows, len(values))

    weights, there = (10.0, 10.0, 5.0, 5.0), torch.ones(rows, dtype=torch.bool, device=device)
    # All RoIs are of picture 0 and on level P2: the others have none, as happens in training.
    first = torch.zeros(rows, dtype=torch.int64, device=device)
    arguments = {
        "iou": lambda: (boxes(1, OBJECTS), boxes(rows), 0),
        "encode": lambda: (boxes(1, rows), boxes(1, rows), weights, 0),
        "decode": lambda: (real(1, rows, 4), boxes(1, rows), weights, 0),
        "match": lambda: (real(1, OBJECTS, rows), 0.7, 0.3, True),
        "sample": lambda: (whole(-2, OBJECTS, 1, rows), real(1, rows), 128, 0.5),
        "nms": lambda: (boxes(1, rows), real(1, rows), whole(0, 5, 1, rows), there[None], 0.7),
        "assign_levels": lambda: (boxes(rows), 4, 112.0, ("outside", 1e-6), 0),
        "roi_align": lambda: (
            *([learned(1, CHANNELS, SIDE // s, SIDE // s) for s in STRIDES[:4]], boxes(rows), first, first),
            *(STRIDES[:4], 7, 2, False),
        ),
        "mask_target": lambda: (
            *(whole(0, 2, rows, 40, 40).to(torch.uint8), all_alike(9, 9, 49, 49), boxes(rows)),
            *(all_alike(SIDE, SIDE), all_alike(SIDE, SIDE), 28, False, False, SIDE),
        ),
        "mask_loss": lambda: (
            *(learned(rows, CLASSES, 28, 28), whole(1, CLASSES, rows), real(rows, 28, 28), there),
            torch.tensor(float(rows), device=device),
        ),
        "paste": lambda: (real(rows, 28, 28), boxes(rows), SIDE, SIDE, "integer"),
    }
    return arguments[name]()
