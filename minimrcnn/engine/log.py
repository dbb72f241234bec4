"""What a run says while it runs: log.jsonl for programs, one moving line for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from minimrcnn.errors import UserError

PLAIN_LINE_EVERY = 10.0  # seconds, where stderr is a file and a moving bar would fill it
SHORT = {
    "loss_classifier": "cls",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_objectness": "obj",
    "loss_rpn_box_reg": "rpn",
}


def read_log(path: Path) -> list[dict]:
    """The lines of a log, oldest first. A last line that a killed run left half written is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def cut_log(path: Path, step: int) -> None:
    """Drop the lines behind `step`: a run that resumes there writes them again."""
    kept = [json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step]
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class Log:
    """log.jsonl, open for more lines; one that writes nothing where `writes` is false."""

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes

    def __enter__(self) -> Log:
        # Line by line: what was written survives the end of the process, however it ends.
        self.file = open(self.path, "a", encoding="utf-8", buffering=1) if self.writes else None
        return self

    def write(self, line: dict) -> None:
        """Add one line. Raises UserError where the disk is full."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}. Make room, then --resume."
            ) from error

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


class Progress:
    """A tqdm bar on a terminal, a plain line now and then elsewhere, nothing where `shown` is false."""

    def __init__(self, step: int, shown: bool) -> None:
        self.first_step, self.began, self.said = step, time.monotonic(), time.monotonic()
        self.shown = shown
        self.bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(initial=self.first_step, unit="step", dynamic_ncols=True)
        return self

    def update(self, line: dict, steps: float) -> None:
        """Show one line of the log; `steps` is their number in all, infinity while it is not known."""
        terms = " ".join(f"{short} {line[name]:.3f}" for name, short in SHORT.items() if name in line)
        text, step = f"loss {line['loss']:.3f} ({terms})", line["step"]
        if self.bar is not None:
            self.bar.total = None if math.isinf(steps) else int(steps)
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        elif self.shown and (time.monotonic() - self.said > PLAIN_LINE_EVERY or step == steps):
            self.said = time.monotonic()
            each = (self.said - self.began) / (step - self.first_step)
            of, left = "?", "?"
            if not math.isinf(steps):
                of, left = f"{steps:g}", time.strftime("%H:%M:%S", time.gmtime(each * (steps - step)))
            rate = f"{line['images_per_second']:.1f} images/s"
            print(f"step {step}/{of}  ETA {left}  {text}  {rate}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
