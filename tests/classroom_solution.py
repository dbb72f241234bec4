"""A small solution notebook of chapter 4, as a person writes one: no ids of its own, no nbgrader metadata."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minimrcnn.classroom.chapters import of_chapter

SETUP = "import torch\n\nfrom minimrcnn.boxes import iou\nfrom minimrcnn.classroom import check"
ANSWERS = {
    "flatten_deltas": "    return output.permute(0, 2, 3, 1).reshape(len(output), -1, 4)",
    "nms": """
    overlap, kept = iou(boxes, boxes).tolist(), []
    for row in scores.argsort(descending=True).tolist():
        if all(overlap[row][better] <= threshold for better in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)""",
    "select_proposals": """
    order = scores.argsort(descending=True)[:number]
    boxes = torch.minimum(boxes[order].clamp(min=0), torch.tensor([width, height, width, height]))
    size = boxes[:, 2:] - boxes[:, :2]
    large = ((size >= min_size) & (size > 0)).all(dim=1)
    return boxes[large], scores[order][large]""",
    "recall": """
    hit = iou(truth, proposals[:number]) >= threshold
    return hit.any(dim=1).float().mean()""",
}


def solution() -> NotebookNode:
    """The notebook, with the outputs that a run stores."""
    cells = [new_markdown_cell("# Chapter 4: exercises"), new_code_cell(SETUP, outputs=[])]
    for exercise in of_chapter(4):
        body = f"    ### BEGIN SOLUTION\n    {ANSWERS[exercise.name].strip()}\n    ### END SOLUTION"
        said = [new_output("stream", name="stdout", text=f"{exercise.name}: ok\n")]
        cells += [
            new_markdown_cell(f"{exercise.heading}\n\nWhat to write."),
            new_code_cell(f"{exercise.stub}\n{body}"),
            new_code_cell(f'check("{exercise.name}", {exercise.name})', outputs=said),
        ]
    shown = 'print(f"after the exercise: {float(iou(torch.ones(1, 4), torch.ones(1, 4))):.0f}")'
    said = [new_output("stream", name="stdout", text="after the exercise: 0\n")]
    cells.append(new_code_cell(shown, outputs=said))
    for number, cell in enumerate(c for c in cells if c.cell_type == "code"):
        cell.execution_count = number + 1
    return new_notebook(cells=cells)


def write_solution(folder: Path, notebook: NotebookNode | None = None) -> Path:
    """The notebook as folder/04_rpn.ipynb."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "04_rpn.ipynb"
    nbformat.write(notebook or solution(), path)
    return path
