"""show_source: the package's own code, and as text only where it is."""

from __future__ import annotations

import html
import re

import pytest
import torch

from minimrcnn import boxes
from minimrcnn.classroom.fence import Limits, prefix
from minimrcnn.model import MaskRCNN
from minimrcnn.show.source import PACKAGE, Source, show_source, source


def _text(shown: Source) -> str:
    body = shown.html().partition("</b>")[2]
    return html.unescape(re.sub(r"<[^>]*>", "", body)).strip("\n")


def test_shows_the_function_as_it_stands_in_the_file() -> None:
    shown = source(boxes.iou)
    assert repr(shown) == "minimrcnn/boxes.py: iou"
    assert shown.code in (PACKAGE / "boxes.py").read_text(encoding="utf-8")
    assert _text(shown) == shown.code.strip("\n")


def test_methods_classes_and_decorated_functions() -> None:
    assert repr(source(MaskRCNN.run)) == "minimrcnn/model.py: MaskRCNN.run"
    assert source(MaskRCNN.run).code.startswith("def run(")
    assert source(Limits).code.startswith("@dataclass")
    assert source(prefix).code.startswith("@functools.cache\ndef prefix(")


def test_without_its_docstring() -> None:
    whole, bare = source(boxes.iou), source(boxes.iou, docstring=False)
    assert '"""' in whole.code and '"""' not in bare.code
    assert bare.code.splitlines()[0] == whole.code.splitlines()[0]
    assert bare.code.splitlines()[-1] == whole.code.splitlines()[-1]
    assert source(Limits, docstring=False).code == (
        "@dataclass(frozen=True)\nclass Limits:\n    seconds: float  # of the clock\n"
        "    memory: int  # bytes, of all its processes together\n"
    )


def test_some_lines_of_it() -> None:
    bare = source(boxes.iou, docstring=False)
    assert source(boxes.iou, docstring=False, lines=(1, 1)).code == bare.code.splitlines(keepends=True)[0]
    assert source(boxes.iou, docstring=False, lines=(2, 2)).code[0] != " "
    with pytest.raises(ValueError, match="iou has lines 1 to"):
        source(boxes.iou, lines=(1, 999))


def test_a_kernel_wrapped_by_an_object() -> None:
    class Kernel:
        fn = staticmethod(boxes.iou)

    assert repr(source(Kernel())) == "minimrcnn/boxes.py: iou"


@pytest.mark.parametrize("thing", [torch.where, torch.nn.Linear, 3, len])
def test_what_is_not_ours_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match=r"minimrcnn"):
        source(thing)


def test_prints_its_place_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show_source(boxes.iou)
    assert capsys.readouterr().out == "minimrcnn/boxes.py: iou\n"


def test_tells_how_to_make_it_again() -> None:
    data, about = source(boxes.iou, docstring=False, lines=(1, 3))._repr_mimebundle_()
    assert data["text/plain"] == "minimrcnn/boxes.py: iou"
    assert about == {"minimrcnn": {"docstring": False, "lines": [1, 3]}}
