"""Two answers compared: in any form that is fair, to a tolerance, with words for where they differ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Unfit(Exception):
    """An answer that cannot be compared at all; the text says why."""


def like(answer: object, wanted: object) -> object:
    """An answer in the form of `wanted`: tensors for numbers in lists, arrays or tensors, tuples for tuples.

    Raises:
        Unfit: it has another structure.
    """
    if isinstance(wanted, str | bytes):
        if type(answer) is not type(wanted):
            raise Unfit(f"gives {kind(answer)} where {kind(wanted)} is wanted")
        return answer
    if isinstance(wanted, dict):
        if not isinstance(answer, dict) or answer.keys() != wanted.keys():
            given = f"the keys {sorted(answer)}" if isinstance(answer, dict) else kind(answer)
            raise Unfit(f"gives {given} where the keys {sorted(wanted)} are wanted")
        return {key: like(answer[key], value) for key, value in wanted.items()}
    if _is_sequence(wanted):
        if not isinstance(answer, tuple | list) or len(answer) != len(wanted):
            given = f"{len(answer)}" if isinstance(answer, tuple | list) else kind(answer)
            raise Unfit(f"gives {given} where {len(wanted)} results are wanted")
        return tuple(like(a, w) for a, w in zip(answer, wanted, strict=True))
    if (
        isinstance(answer, list | tuple)
        and not len(answer)
        and isinstance(wanted, Tensor)
        and not wanted.numel()
    ):
        return wanted.clone()  # an empty list has no shape to be wrong
    return _tensor(answer)


def _is_sequence(wanted: object) -> bool:
    return isinstance(wanted, tuple) or (
        isinstance(wanted, list) and any(isinstance(item, Tensor | list | tuple | str) for item in wanted)
    )


def _tensor(answer: object) -> Tensor:
    try:
        if isinstance(answer, Tensor):
            found = answer.detach().cpu()
            found = found if found.layout == torch.strided else found.to_dense()
        elif isinstance(answer, list | tuple) and any(isinstance(item, Tensor) for item in answer):
            found = torch.stack([_tensor(item) for item in answer])
        elif isinstance(answer, str | bytes | dict | set):
            raise TypeError
        else:
            found = torch.from_numpy(np.array(answer))
    except (TypeError, ValueError, RuntimeError):
        raise Unfit(f"gives {kind(answer)} where numbers are wanted") from None
    if found.is_complex():
        raise Unfit("gives complex numbers where real ones are wanted")
    return found


def kind(answer: object) -> str:
    """A few words for what something is."""
    names = {"str": "text", "bytes": "bytes", "dict": "a dict", "list": "a list", "tuple": "a tuple"}
    if isinstance(answer, Tensor):
        return f"one tensor {tuple(answer.shape)}"
    name = type(answer).__name__
    return names.get(name, f"a value of type {name}")


def misfit(answer: object, wanted: object, tolerance: float) -> str:
    """How an answer (from `like`) differs from `wanted` (also from `like`); "" where it does not."""
    for number, (a, w) in enumerate(_leaves(answer, wanted)):
        of = f" in result {number + 1}" if isinstance(wanted, tuple | dict) else ""
        if not isinstance(w, Tensor):
            if a != w:
                return f"gives {a!r} where the answer is {w!r}{of}"
            continue
        text = _shape(a, w) or _dtype(a, w) or _nan(a, w) or _number(a, w, tolerance)
        if text:
            return text + of
    return ""


def equal(a: object, b: object, tolerance: float) -> bool:
    """Whether two answers (from `like`) have the same shapes and, to the tolerance, the same numbers."""
    for x, y in _leaves(a, b):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if type(x) is not type(y) or x != y:
                return False
        elif x.shape != y.shape or not bool(_close(x, y, tolerance).all()):
            return False
    return True


def compared(answer: object, wanted: object) -> str:
    """Shapes, and the largest difference, of two answers (from `like`): a line of numbers."""
    pairs = _leaves(answer, wanted)
    shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a)[:40] for a, _ in pairs)
    other = [w for a, w in pairs if isinstance(w, Tensor) and a.shape != w.shape]
    if other:
        return f"{shapes}, the reference's shape is {', '.join(str(tuple(w.shape)) for w in other)}"
    differences = [
        (a.double() - w.double()).abs().max().item() if isinstance(w, Tensor) else float(a != w)
        for a, w in pairs
        if not isinstance(w, Tensor) or w.numel()
    ]
    return f"{shapes}, largest difference to the reference {max(differences, default=0.0):.4f}"


def wrong_rows(answer: object, wanted: object, tolerance: float) -> Tensor | None:
    """Which rows (first axis) of an answer are wrong, (N,) bool; None if it has not one tensor's shape."""
    if not isinstance(answer, Tensor) or not isinstance(wanted, Tensor):
        return None
    if answer.shape != wanted.shape or answer.dim() == 0:
        return None
    return (
        ~_close(answer, wanted, tolerance).flatten(1).all(dim=1)
        if answer.dim() > 1
        else ~_close(answer, wanted, tolerance)
    )


def identical(a: object, b: object) -> bool:
    """Whether two arguments are the same to the last bit (NaN equals NaN)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0, 0, equal_nan=True)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return not isinstance(a, int | float | str | bytes) or a == b


def _leaves(a: object, b: object) -> list[tuple[object, object]]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [pair for key in b for pair in _leaves(a[key], b[key])]
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return [pair for x, y in zip(a, b, strict=True) for pair in _leaves(x, y)]
    return [(a, b)]


def _close(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    return torch.isclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _shape(a: Tensor, w: Tensor) -> str:
    if a.shape == w.shape:
        return ""
    if a.dim() == w.dim() == 1:
        return f"gives {len(a)} value{'s' * (len(a) != 1)} where {len(w)} are wanted"
    turned = ": transposed" if a.dim() > 1 and a.shape[::-1] == w.shape else ""
    return f"gives shape {tuple(a.shape)} where {tuple(w.shape)} is wanted{turned}"


def _dtype(a: Tensor, w: Tensor) -> str:
    """Fractions where rows or yes and no are wanted would fail when they are used as an index."""
    name = str(a.dtype).removeprefix("torch.")
    if w.dtype == torch.bool and a.dtype != torch.bool and a.numel():
        return f"gives {name} where True and False (bool) are wanted"
    whole = not (w.is_floating_point() or w.dtype == torch.bool)
    if whole and (a.is_floating_point() or a.dtype == torch.bool) and a.numel():
        return f"gives {name} where whole numbers (int64) are wanted"
    if w.is_floating_point() and not a.is_floating_point() and not bool(_close(a, w, 1e-3).all()):
        return f"gives {name}: the fractions are lost"
    return ""


def _nan(a: Tensor, w: Tensor) -> str:
    for test, name in ((torch.isnan, "NaN"), (torch.isinf, "infinity")):
        count = int((test(a) & ~test(w)).sum())
        if count:
            return f"gives {name} in {count} of {a.numel()} places"
    return ""


def _number(a: Tensor, w: Tensor, tolerance: float) -> str:
    bad = ~_close(a, w, tolerance)
    count = int(bad.sum())
    if not count:
        return ""
    place = bad.nonzero()[0].tolist()
    got, right = a[tuple(place)].item(), w[tuple(place)].item()
    at = f" at {place}" if place else ""
    return f"gives {_short(got)} where the answer is {_short(right)}{at}" + (
        f", and is wrong in {count} of {a.numel()} places" if a.numel() > 1 else ""
    )


def _short(value: float) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
