"""The functions of a student's solved notebooks, as the parts of a Mask R-CNN."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minimrcnn.classroom.calling import call
from minimrcnn.classroom.chapters import all_exercises
from minimrcnn.classroom.diagnosis import NOT_WRITTEN, OK, verdict
from minimrcnn.classroom.exercise import Exercise
from minimrcnn.classroom.harvest import Found, harvest
from minimrcnn.classroom.stopping import TimeUp, time_limit
from minimrcnn.config import ARCHITECTURES, CONVENTIONS
from minimrcnn.lifting import per_image
from minimrcnn.model import MaskRCNN
from minimrcnn.parts import NEEDS_GRADIENT, Parts


def my_parts(folder: str | Path = ".", *, seconds: float = 2.0) -> Parts:
    """The parts that the notebooks in a folder define, and the package's for the others; says which is which.

    A function is taken if its check says ok, if it has a gradient where training needs one, and if a
    training step of the mini model on one picture takes at most `seconds` (of the processor) longer with it.
    Of a notebook only the answer cells and the imports are run, not the rest.

    Raises:
        UserError: there is no such folder.
    """
    found = harvest(Path(folder), {e.name for e in all_exercises().values() if e.part})
    exercises = {e.part: e for e in all_exercises().values() if e.part}
    usual = min(_step(Parts(), None) for _ in range(2))  # the first one fills caches
    parts, lines = Parts(), []
    for part in (field.name for field in fields(Parts)):
        if part not in exercises:
            lines.append((part, "the package's: the course has no exercise for it"))
            continue
        lifted, said = _choose(exercises[part], found.get(exercises[part].name, []), usual, seconds)
        if lifted is not None:
            parts = replace(parts, **{part: lifted})
        lines.append((part, said))
    yours = sum(said.startswith("yours") for _, said in lines)
    print(f"{yours} of {len(lines)} parts are yours:")
    for part, said in lines:
        print(f"  {part:<13}  {said}")
    return parts


def _choose(
    exercise: Exercise, candidates: list[Found], usual: float, seconds: float
) -> tuple[Callable | None, str]:
    """The first candidate that is fit, lifted; otherwise None and why."""
    why = "not found in these notebooks"
    for found in candidates:
        said = found.problem or verdict(exercise, found.function)
        if said == OK:
            lifted = per_image(exercise.part, _typed(exercise, found.function))
            said = _unfit(exercise, found.function, lifted, usual, seconds)
            if not said:
                return lifted, f"yours, from {found.notebook}"
        if said != NOT_WRITTEN or why.startswith("not found"):
            why = f"yours, in {found.notebook}: {said}"
    return None, f"the package's ({why})"


def _unfit(exercise: Exercise, function: Callable, lifted: Callable, usual: float, seconds: float) -> str:
    """Why a function that is right is not fit to train with; "" if it is."""
    if exercise.part in NEEDS_GRADIENT and not _has_gradient(exercise, function):
        return "right, but it has no gradient"
    try:
        with time_limit(20 * seconds + 10):  # by the clock on the wall, of a machine that may be busy
            if _step(replace(Parts(), **{exercise.part: lifted}), exercise.part) <= usual + seconds:
                return ""
    except TimeUp:
        pass
    except Exception as error:
        return f"right, but in the model it raises {type(error).__name__}: {' '.join(str(error).split())}"
    return f"right, but too slow to train with: a step takes {seconds:g} s longer, or more"


def _has_gradient(exercise: Exercise, function: Callable) -> bool:
    first, *rest = exercise.cases()[0]
    with torch.enable_grad():
        answer = call(function, (first.clone().requires_grad_(), *rest)).answer
    answer = answer if isinstance(answer, Tensor) else next(iter(answer), None)
    return isinstance(answer, Tensor) and answer.requires_grad


def _step(parts: Parts, part: str | None) -> float:
    """Seconds of one training step of the mini model with these parts (of one detection, for `paste`).

    Of one processor: the clock on the wall, and threads that wait for one another, would say "too slow"
    whenever the machine does something else.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed_step(parts, part)
    finally:
        torch.set_num_threads(threads)


def _timed_step(parts: Parts, part: str | None) -> float:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = MaskRCNN(ARCHITECTURES["mini"], CONVENTIONS["torchvision"], parts)
        masks = torch.zeros(3, 160, 192, dtype=torch.uint8)
        boxes = torch.tensor([[10.0, 20, 60, 90], [50, 30, 180, 150], [100, 5, 130, 40]])
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": masks}
        target["image_id"] = torch.tensor(1)
        began = time.process_time()
        if part == "paste":
            with torch.no_grad():
                model.run([torch.rand(3, 160, 192)], detections=True)
        else:
            losses = model.run([torch.rand(3, 160, 192)], [target], losses=True).losses
            sum(losses.values()).backward()
        return time.process_time() - began


def _typed(exercise: Exercise, function: Callable[..., object]) -> Callable[..., object]:
    """The function with its lists and float64 made what the model works with."""
    wanted = exercise.reference(*exercise.cases()[0])

    def part(*arguments: object) -> object:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        return _like(function(*arguments), wanted, device)

    return part


def _like(answer: object, wanted: object, device: torch.device) -> object:
    if isinstance(wanted, tuple):
        return tuple(_like(a, w, device) for a, w in zip(answer, wanted, strict=True))
    if not isinstance(answer, Tensor):
        if isinstance(answer, list | tuple) and any(isinstance(item, Tensor) for item in answer):
            answer = torch.stack(tuple(answer))
        else:
            answer = torch.from_numpy(np.array(answer))
    if answer.numel() == 0 and answer.dim() == 1:  # an empty list
        answer = answer.reshape(0, *wanted.shape[1:])
    return answer.to(device, wanted.dtype)
