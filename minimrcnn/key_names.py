"""The names of parameters in torchvision's published files, and what they are called today."""

from __future__ import annotations

import re

from torch import Tensor

# torchvision's published files of 2019 have older names for three groups of parameters.
OLD_NAMES = [
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (
        re.compile(r"^(roi_heads\.mask_head)\.mask_fcn(\d+)\.(weight|bias)$"),
        lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}",
    ),
]


def modern_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with old names replaced, and without batch norm's counters."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in OLD_NAMES:
            name = pattern.sub(replacement, name)
        if not name.endswith("num_batches_tracked"):
            renamed[name] = value
    return renamed
