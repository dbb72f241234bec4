"""What the data check finds: a list of problems, each with its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding. kind: a short name to group by; where: file and image or annotation id."""

    kind: str
    where: str
    message: str  # what is wrong, and what to do
    severity: str = "error"  # "error": training would fail or go wrong; "note": worth knowing


class Findings(list[Problem]):
    """The problems of one annotation file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def add(self, kind: str, where: str, message: str, severity: str = "error") -> None:
        """Note one problem; `where` without the file."""
        self.append(Problem(kind, f"{self.file}: {where}", message, severity))


def at(annotation: dict) -> str:
    """Where an annotation is found, for a message."""
    return f"annotation {annotation['id']} (image {annotation['image_id']})"


def first_ids(what: str, ids: Iterable[int]) -> str:
    """ "images 1, 2, 3, 4, 5, ...": the first ids, each once, for a message about more than one."""
    ids = list(dict.fromkeys(ids))
    return f"{what}{'s' * (len(ids) != 1)} {', '.join(map(str, ids[:5]))}{', ...' if ids[5:] else ''}"
