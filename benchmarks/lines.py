"""Lines of code on the way from photo to loss: no blank lines, comments or docstrings counted.

python -m benchmarks.lines
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import torchvision

import minimrcnn

# The files that a photo passes on its way to the loss. Reading files, training, evaluation, pasting and
# the lifts of students' functions lie beside that way, as they do in torchvision's list.
OURS = [
    *("config", "structures", "randomness", "transforms", "backbone", "boxes", "anchors", "matching"),
    *("rpn", "roi_ops/checks", "roi_ops/pyramid", "heads", "losses", "masks", "parts", "model"),
]
# RoIAlign itself, in PyTorch. torchvision's is C++ and CUDA, not counted; its slow form in Python is.
KERNEL = ["roi_ops/sampling", "roi_ops/gather", "roi_ops/crop"]
# Its boxes and heads decide on the detections in the same files; ours do that in detection.py.
THEIRS = [
    *("models/detection/" + name for name in ("mask_rcnn", "faster_rcnn", "generalized_rcnn", "rpn")),
    *("models/detection/" + name for name in ("roi_heads", "_utils", "anchor_utils", "image_list")),
    *("models/detection/" + name for name in ("transform", "backbone_utils")),
    *("models/resnet", "models/_utils", "ops/boxes", "ops/poolers", "ops/feature_pyramid_network"),
    *("ops/roi_align", "ops/misc", "ops/_utils", "ops/focal_loss"),
]


def code_lines(path: Path) -> int:
    """Lines of one file that hold code."""
    source = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.update(range(first.lineno, first.end_lineno + 1))
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*skip, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Both sides, file by file. Ours, RoIAlign included, must stay within 1,400."""
    totals = []
    for package, names in ((minimrcnn, OURS), (minimrcnn, KERNEL), (torchvision, THEIRS)):
        print(package.__name__ + (", RoIAlign" if names is KERNEL else ""))
        counts = {name: code_lines(Path(package.__file__).parent / f"{name}.py") for name in names}
        for name, count in counts.items():
            print(f"  {name:40} {count:5}")
        totals.append(sum(counts.values()))
        print(f"  {'sum':40} {totals[-1]:5}")
    ours, kernel, theirs = totals
    print(f"all of ours {ours + kernel}, ratio {theirs / (ours + kernel):.2f}")


if __name__ == "__main__":
    main()
