"""The crop comparison, live: a RoI that is dragged or typed, and what that does to the crops.

The drawing is an SVG in an ipywidgets.HTML; ipyevents tells where the mouse is. Where ipywidgets is missing
the same call shows the figure; where only ipyevents is, the RoI is typed and pushed, but not dragged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from torch import Tensor

from minimrcnn.show.crops import Drawing, draw, figure_of
from minimrcnn.show.lessons import LESSONS, TEACHING_ROI, Lesson, picture_named
from minimrcnn.show.notebook import NotebookFigure
from minimrcnn.show.render import as_svg
from minimrcnn.show.scene import OPERATIONS, Scene, Source, as_source, make_scene, words
from minimrcnn.show.sheet import Array
from minimrcnn.threads import one_thread

Window = tuple[float, float, float, float]
MINE, FIRST = "yours", "as at first"


class RoIExplorer:
    """RoIPool, RoIWarp and RoIAlign on a RoI that moves.

    As the value of a cell in JupyterLab it shows controls and a live drawing: drag the RoI or its sides, in
    the picture or over the cells; type its corners; push it by a tenth of a pixel; choose the stride, the
    bins, the sampling points, `aligned`, and the operation whose bin is enlarged; click a bin of a crop to
    see its arithmetic. Without ipywidgets, and on a page that is only read, it is the figure of
    `compare_crops`.

    Attributes:
        scene: what is shown now, in numbers: `scene.errors["roi_pool"].x`, `scene.crops["roi_align"]`.
        redraw_ms: what the last drawing took here, in milliseconds, up to the text that the browser draws.
    """

    def __init__(
        self,
        picture_or_map: Tensor | Array | None = None,
        roi: Sequence[float] = TEACHING_ROI,
        *,
        output_size: int = 7,
        stride: int = 16,
        sampling_ratio: int = 2,
        aligned: bool = True,
        detail: str = "roi_align",
    ) -> None:
        """Arguments and errors as `compare_crops`. Without a picture it draws one."""
        self._given = picture_or_map
        self._sources: dict[tuple[str, int], Source] = {}
        picture = "toys" if picture_or_map is None else MINE
        if not isinstance(output_size, int):
            raise ValueError(
                f"the explorer's bins are as many down as across: one number, not {output_size!r}"
            )
        first = Lesson(picture, tuple(roi), stride, output_size, sampling_ratio, aligned, detail)
        self.lessons = {FIRST: first, **LESSONS}
        self.redraw_ms = 0.0
        self.scene: Scene
        self.drawing: Drawing
        self.show(first)
        self.controls = None
        with contextlib.suppress(ImportError):  # no ipywidgets: the figure alone
            from minimrcnn.show.controls import Controls

            self.controls = Controls(self)

    def show(self, lesson: Lesson, bin: tuple[int, int] = (0, 0), window: Window | None = None) -> str:
        """Work out and draw a new scene; the drawing as SVG.

        window: what to show around the RoI (left, top, width, height), while it is dragged.
        Raises ValueError, and leaves everything as it was, for what cannot be shown.
        """
        start = time.perf_counter()
        settings = lesson.output_size, lesson.sampling_ratio, lesson.aligned, lesson.detail
        with one_thread():
            source = self._source(lesson.picture, lesson.stride)
            scene = make_scene(source, lesson.roi, OPERATIONS, *settings, bin, window)
            drawing = draw(scene)
        self.svg = as_svg(drawing.sheet, words(scene))
        self.lesson, self.scene, self.drawing = lesson, scene, drawing
        self.redraw_ms = (time.perf_counter() - start) * 1000
        return self.svg

    def _source(self, picture: str, stride: int) -> Source:
        """A picture's map of a stride, made once."""
        if (picture, stride) not in self._sources:
            pixels = self._given if picture == MINE else picture_named(picture)
            self._sources[picture, stride] = as_source(pixels, stride)
        return self._sources[picture, stride]

    @property
    def pictures(self) -> list[str]:
        """The names of the pictures to choose from."""
        mine = [MINE] if self._given is not None else []
        return [*mine, *dict.fromkeys(lesson.picture for lesson in LESSONS.values())]

    def figure(self) -> NotebookFigure:
        """What is shown now, as a matplotlib figure."""
        return figure_of(self.scene)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        """Jupyter's protocol: the live view for who can show one, and the figure for everyone else."""
        data, about = self.figure()._repr_mimebundle_()
        if self.controls is not None:
            # Its text is a list of widgets: the figure's, with the numbers, says more.
            data = self.controls.box._repr_mimebundle_() | data
        return data, about
