"""The classroom: exercises and their checks, the notebooks made from them, and the parts that students wrote.

from minimrcnn.classroom import check, my_parts
check("iou", iou)     # one line: ok, not written yet, or what is wrong
parts = my_parts()    # the functions of the solved notebooks in this folder, as the model takes them
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minimrcnn.classroom.checking import check
    from minimrcnn.classroom.own_parts import my_parts
    from minimrcnn.classroom.predicting import predicted

__all__ = ["check", "my_parts", "predicted"]

_HOME = {"check": "checking", "my_parts": "own_parts", "predicted": "predicting"}


def __getattr__(name: str) -> object:
    """Import a function when it is first asked for: the command line need not wait seconds for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'minimrcnn.classroom' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minimrcnn.classroom.{_HOME[name]}"), name)
