"""The explorer in a real browser: JupyterLab, Chromium, a mouse, and the numbers on the page.

`make test-browser` installs what this needs. Screenshots go to runs/test-browser/.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minimrcnn import roi_ops
from minimrcnn.show.lessons import TEACHING_ROI, picture_named

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: make test-browser installs it")
nbformat = pytest.importorskip("nbformat")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: make test-browser installs it"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "runs" / "test-browser"
TOKEN = "explorer"
DRAWING = ".minimrcnn-drawing svg[role=img]"
ARITHMETIC = f"{DRAWING} [data-name=arithmetic]"  # the words under the enlarged bin
WAIT = 200_000  # milliseconds: a kernel that imports torch on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    """Chromium: the system's, or the one that Playwright fetched."""
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, BROWSERS)), own if Path(own).exists() else None)
        if path is None:
            pytest.skip("there is no Chromium: make test-browser installs it")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(browser: sync_api.Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab with one notebook that shows an explorer."""
    folder = tmp_path_factory.mktemp("lab")
    cell = "from minimrcnn.show import RoIExplorer\nexplorer = RoIExplorer()\nexplorer"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = folder / "SETTINGS" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')  # the question whether it may lies over the drawing
    own = {f"JUPYTER_{what}_DIR": str(folder / what) for what in ("CONFIG", "RUNTIME", "DATA")}
    own["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "SETTINGS")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
                *(f"--port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"),
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            env=os.environ | own | {"PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api?token={TOKEN}", server, folder / "lab.log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(WAIT // 500):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page(browser: sync_api.Browser, lab: str) -> Iterator[sync_api.Page]:
    """A page with the explorer on it."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1150})
    page.set_default_timeout(WAIT)
    page.goto(f"{lab}/lab/tree/explorer.ipynb?token={TOKEN}")
    page.get_by_text("| Idle").wait_for()  # a cell that is run before there is a kernel is not run
    page.locator(".jp-Notebook .cm-content").first.click()
    page.keyboard.press("Control+Enter")
    try:
        page.locator(DRAWING).wait_for()
    finally:
        page.screenshot(path=SHOTS / "start.png")
    yield page
    page.screenshot(path=SHOTS / "last.png")


# ---------------------------------------------------------------- what the page says, and what is right


def corners(page: sync_api.Page) -> tuple[float, ...]:
    """The four numbers in the fields."""
    return tuple(
        float(page.get_by_label(name, exact=True).input_value()) for name in ("x1", "y1", "x2", "y2")
    )


def misaligned(page: sync_api.Page, name: str) -> list[float]:
    """x, y and the worst bin, as written under an operation's crop."""
    text = page.locator(f".minimrcnn-drawing [data-name={name}]").inner_html()
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d\d", text)]


def operation_errors(name: str, roi: tuple[float, ...], stride: int, aligned: bool) -> list[float]:
    """The same from the operation alone: a ramp, its mirror image, and the middles of the bins."""
    options = {"roi_align": {"aligned": aligned}}.get(name, {})
    rois = torch.tensor([[0.0, *roi]])
    place = (torch.arange(320 // stride) + 0.5) * stride
    x = place.expand(len(place), len(place))
    read = []
    for ramp in (x, x.T):
        both = torch.stack([ramp, -ramp])[None]
        crop = getattr(roi_ops, name)(both, rois, 7, 1 / stride, **options)[0]
        read.append((crop[0] - crop[1]) / 2)
    middle = (torch.arange(7) + 0.5) / 7
    errors = [
        read[0] - (roi[0] + middle * (roi[2] - roi[0])),
        read[1] - (roi[1] + middle * (roi[3] - roi[1]))[:, None],
    ]
    return [*(float(error.mean()) for error in errors), float(torch.hypot(*errors).max())]


def agrees(page: sync_api.Page, stride: int, aligned: bool = True) -> None:
    """Wait until the page's numbers are those of the operations on the RoI in its fields."""
    roi = corners(page)
    heading = f"RoI ({roi[0]:g}, {roi[1]:g}) to ({roi[2]:g}, {roi[3]:g}) px"
    drawing = page.locator(DRAWING)
    sync_api.expect(drawing).to_contain_text(heading, timeout=WAIT)
    sync_api.expect(drawing).to_contain_text(f"cells of {stride} px", timeout=WAIT)
    for name in ("roi_pool", "roi_warp", "roi_align"):
        assert misaligned(page, name) == pytest.approx(
            operation_errors(name, roi, stride, aligned), abs=0.0051
        )


def bin_value(name: str, roi: tuple[float, ...], stride: int) -> float:
    """The upper left bin of the crop of the first picture."""
    brightness = picture_named("toys").float().mean(dim=0)[None, None]
    crop = getattr(roi_ops, name)(
        F.avg_pool2d(brightness, stride),
        torch.tensor([[0.0, *roi]]),
        7,
        1 / stride,
        **({"aligned": True} if name == "roi_align" else {}),
    )
    return float(crop[0, 0, 0, 0])


def place(page: sync_api.Page, x: float, y: float) -> tuple[float, float]:
    """A pixel of the drawing, 900 wide, on the screen."""
    box = page.locator(DRAWING).bounding_box()
    scale = box["width"] / 900
    return box["x"] + x * scale, box["y"] + y * scale


def drag(page: sync_api.Page, start: tuple[float, float], by: tuple[float, float]) -> None:
    # All places before the first movement: while the drawing is replaced it has no place.
    way = [place(page, start[0] + by[0] * i / 10, start[1] + by[1] * i / 10) for i in range(11)]
    page.mouse.move(*way[0])
    page.mouse.down()
    page.wait_for_timeout(400)  # the kernel now asks for movements
    for step in way[1:]:
        page.mouse.move(*step)
        page.wait_for_timeout(40)
    page.mouse.up()


def changed(page: sync_api.Page, before: tuple[float, ...]) -> tuple[float, ...]:
    """The fields, once they say something else and no longer change."""
    now = corners(page)
    for _ in range(WAIT // 300):
        page.wait_for_timeout(300)
        last, now = now, corners(page)
        if now == last != before:
            return now
    pytest.fail(f"the RoI stayed where it was, at {before}")


# ---------------------------------------------------------------- tests, in one sitting


def test_the_numbers_at_first(page: sync_api.Page) -> None:
    assert corners(page) == TEACHING_ROI
    agrees(page, 16)
    value = bin_value("roi_align", TEACHING_ROI, 16)
    sync_api.expect(page.locator(ARITHMETIC).last).to_have_text(
        f"the bin is the mean of its 4 points, {value:.0f}"
    )
    page.screenshot(path=SHOTS / "first.png")


def test_the_roi_is_dragged_over_the_picture(page: sync_api.Page) -> None:
    before = corners(page)
    drag(page, (146, 141), (18.6, 9.3))  # 186 pixels of the drawing are 320 of the picture
    after = changed(page, before)
    moved = [new - old for new, old in zip(after, before, strict=True)]
    assert moved == pytest.approx([32, 16, 32, 16], abs=2.5)
    agrees(page, 16)
    page.screenshot(path=SHOTS / "dragged.png")


def test_a_side_is_dragged_over_the_cells(page: sync_api.Page) -> None:
    before = corners(page)
    drag(page, _right_side(page), (20, 0))
    after = changed(page, before)
    assert after[:2] == before[:2] and after[3] == before[3] and after[2] > before[2] + 5
    agrees(page, 16)


def _right_side(page: sync_api.Page) -> tuple[float, float]:
    """The middle of the RoI's right side in the picture, pixels of the drawing."""
    _, y1, x2, y2 = corners(page)
    scale = 186 / 320
    return 12 + (280 - 186) / 2 + x2 * scale, 74 + (y1 + y2) / 2 * scale


def test_a_corner_is_typed(page: sync_api.Page) -> None:
    field = page.get_by_label("x1", exact=True)
    field.fill("100.25")
    field.press("Enter")
    agrees(page, 16)
    assert corners(page)[0] == 100.25


def test_the_roi_is_pushed_by_half_a_pixel(page: sync_api.Page) -> None:
    before = corners(page)
    page.get_by_role("button", name="→").click()
    after = changed(page, before)
    assert after == pytest.approx((before[0] + 0.5, before[1], before[2] + 0.5, before[3]), abs=1e-6)
    agrees(page, 16)


@pytest.mark.parametrize("stride", [4, 8, 32])
def test_the_stride_is_changed(page: sync_api.Page, stride: int) -> None:
    assert all(40 <= corner <= 280 for corner in corners(page))  # far from the border at every stride
    page.get_by_role("button", name=str(stride), exact=True).click()
    agrees(page, stride)
    page.screenshot(path=SHOTS / f"stride_{stride}.png")


def test_the_operation_is_switched(page: sync_api.Page) -> None:
    page.get_by_role("button", name="16", exact=True).click()
    agrees(page, 16)
    for name, title in (("roi_pool", "RoIPool"), ("roi_warp", "RoIWarp"), ("roi_align", "RoIAlign")):
        page.get_by_role("button", name=title).click()
        drawing = page.locator(DRAWING)
        sync_api.expect(drawing).to_contain_text(f"{title}, bin (0, 0) enlarged", timeout=WAIT)
        value = bin_value(name, corners(page), 16)
        sync_api.expect(page.locator(ARITHMETIC).last).to_have_text(re.compile(rf", {value:.0f}$"))
        page.screenshot(path=SHOTS / f"{name}.png")


def test_a_bin_is_clicked(page: sync_api.Page) -> None:
    page.mouse.click(*place(page, 310 + 132 * 3.5 / 7, 572 + 132 * 2.5 / 7))  # of RoIWarp's crop
    sync_api.expect(page.locator(DRAWING)).to_contain_text("bin (2, 3) enlarged", timeout=WAIT)


def test_a_teaching_case(page: sync_api.Page) -> None:
    page.get_by_label("show", exact=True).select_option("half a pixel off: aligned=False")
    sync_api.expect(page.locator(DRAWING)).to_contain_text("half a cell late", timeout=WAIT)
    agrees(page, 16, aligned=False)
    assert misaligned(page, "roi_align")[:2] == [8.0, 8.0]
    page.screenshot(path=SHOTS / "aligned_false.png")
    page.get_by_label("show", exact=True).select_option("a diagonal edge")
    sync_api.expect(page.locator(DRAWING)).to_contain_text("crop, 14 x 14", timeout=WAIT)
    page.screenshot(path=SHOTS / "diagonal_edge.png")


def test_a_roi_that_is_inside_out_is_refused(page: sync_api.Page) -> None:
    page.get_by_label("show", exact=True).select_option("as at first")
    sync_api.expect(page.locator(DRAWING)).to_contain_text("RoI (87.6", timeout=WAIT)
    field = page.get_by_label("x1", exact=True)
    field.fill("300")
    field.press("Enter")
    sync_api.expect(page.locator(".minimrcnn-status [role=alert]")).to_contain_text(
        "inside out", timeout=WAIT
    )
    sync_api.expect(page.locator(DRAWING)).to_contain_text("RoI (87.6")
    field.fill("87.6")
    field.press("Enter")
    sync_api.expect(page.locator(".minimrcnn-status [role=alert]")).to_have_count(0, timeout=WAIT)
    agrees(page, 16)
