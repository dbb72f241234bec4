"""Make mini_toybox.pt, the weights of `minimrcnn.mini(weights="TOYBOX")`, out of a finished run.

python -m minimrcnn.assets.make_mini_toybox runs/toybox
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from minimrcnn.engine import checkpoint
from minimrcnn.weights import TOYBOX, from_checkpoint, to_checkpoint


def make(run: Path) -> str:
    """Write the run's model in half precision, without optimiser and schedule; return the file's SHA-256."""
    state = to_checkpoint(*from_checkpoint(checkpoint.load(run / "checkpoint.pt")))
    state["model"] = {name: value.half() for name, value in state["model"].items()}
    torch.save(state, TOYBOX)
    return hashlib.sha256(TOYBOX.read_bytes()).hexdigest()


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
