"""The page of `pconv try` in headless Chromium: a picture is dropped, painted, filled, saved, and compared with the
job's output for the picture and the mask that the page saves."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from networks import small_config, write_run
from page_server import photo, png, run_job, serving, turned_jpeg

PHONE, DESKTOP = 390, 1280
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return write_run(str(tmp_path_factory.mktemp("networks") / "run"), small_config(64))


@pytest.fixture(scope="module")
def url(run):
    with serving(run) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(browser, url, tmp_path):
    """The page at desktop width. At the end it must have been silent, and have asked nobody but its server."""
    browser.events.clear()
    browser.resize(DESKTOP)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(url, has="#drop")
    yield browser
    browser.run("1")
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert [event for event in browser.events if event["method"] in said] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [found for found in asked if not found.startswith((url, "data:", f"blob:{url}"))] == []


def wait_for(page, condition: str) -> None:
    until = time.monotonic() + 300
    while not page.run(condition):
        assert time.monotonic() < until, page.run("document.body.innerText")
        time.sleep(0.05)


def box_of(page, selector: str) -> list[float]:
    """Left, top, width and height of what is seen of an element."""
    script = "(b => [b.left, b.top, b.width, b.height])"
    return page.run(f"{script}(document.querySelector('{selector}').getBoundingClientRect())")


def click(page, selector: str) -> None:
    left, top, width, height = box_of(page, selector)
    page.press(left + width / 2, top + height / 2)


def drop(page, path: Path) -> None:
    left, top, width, height = box_of(page, "main")
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=left + width / 2, y=top + height / 2, data=data)
    wait_for(page, "document.body.getAttribute('aria-busy') == 'false'")


def paint(page, *line: tuple[float, float]) -> None:
    """A stroke between places of the picture, as fractions of its width and height."""
    left, top, width, height = box_of(page, "#paint")
    places = [(left + x * width, top + y * height) for x, y in line]
    mouse = {"button": "left", "clickCount": 1}
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=places[0][0], y=places[0][1], **mouse)
    for x, y in places[1:]:
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=places[-1][0], y=places[-1][1], **mouse)


def seen(page) -> list[str]:
    """Which of the page's parts are seen."""
    return page.run("['drop', 'stage', 'compare'].filter(id => document.getElementById(id).checkVisibility())")


def fill(page) -> None:
    assert seen(page) == ["stage"]
    click(page, "#fill")
    wait_for(page, "document.body.dataset.state == 'filled' && document.body.getAttribute('aria-busy') == 'false'")
    assert seen(page) == ["compare"]


def save(page, selector: str, path: Path) -> bytes:
    """The bytes that a link saves as ``path``."""
    click(page, selector)
    until = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < until, list(path.parent.iterdir())
        time.sleep(0.05)
    return path.read_bytes()


def holes(mask: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED) == 0


PICTURES = {
    "turned.jpg": turned_jpeg(300, 400),
    "deep.png": png(photo(300, 400, np.uint16)),
    "wide.png": png(photo(500, 2500)),
}


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", PICTURES)
def test_what_is_painted_is_filled_and_saved_as_the_job_writes_it(name, width, page, run, tmp_path):
    page.resize(width)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(PICTURES[name])
    drop(page, tmp_path / "in" / name)
    assert page.run("document.querySelector('#fill').disabled")
    paint(page, (0.3, 0.4), (0.6, 0.5))
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    fill(page)
    stem = Path(name).stem
    mask = save(page, "#save-mask", tmp_path / f"{stem}_mask.png")
    data = save(page, "#save", tmp_path / f"{stem}.png")
    (tmp_path / "job").mkdir()
    out = run_job(run, {name: (PICTURES[name], mask)}, tmp_path / "job")
    assert data == (out / f"{stem}.png").read_bytes()
    # The hole is where the stroke was.
    found = holes(mask)[..., 0]
    height, wide = found.shape
    assert found[round(0.45 * height), round(0.45 * wide)] and not found[: height // 8].any()
    assert 0.01 < found.mean() < 0.4


def test_strokes_are_erased_and_undone(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(photo(300, 400)))
    drop(page, tmp_path / "a.png")
    count = "document.querySelector('#paint').getContext('2d').getImageData(0, 0, 400, 300).data.filter(x => x).length"
    paint(page, (0.2, 0.5), (0.8, 0.5))
    whole = page.run(count)
    click(page, "[value=erase] + span")
    paint(page, (0.5, 0.3), (0.5, 0.7))
    assert 0 < page.run(count) < whole
    click(page, "#undo")
    assert page.run(count) == whole
    click(page, "#clear")
    assert page.run(count) == 0 and page.run("document.querySelector('#fill').disabled")


def test_the_slider_uncovers_the_picture_as_it_was(page, tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.full((300, 400, 3), 200, np.uint8)))
    drop(page, tmp_path / "a.png")
    paint(page, (0.05, 0.5), (0.95, 0.5))
    fill(page)
    left, top, width, height = map(round, box_of(page, "#compare"))

    def row():
        return page.screenshot()[top + height // 2, left : left + width].astype(int)

    page.press(left + 0.5 * width, top + 0.8 * height, to=left + 0.8 * width)
    assert (abs(row()[: int(0.75 * width)] - 200) <= 1).all()
    page.press(left + 0.8 * width, top + 0.8 * height, to=left + 0.2 * width)
    filled = row()[int(0.25 * width) : int(0.95 * width)]
    assert (abs(filled - 200).max(axis=1) > 10).mean() > 0.9


def test_a_bad_picture_is_a_message_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(png(photo(60, 80)))
    drop(page, tmp_path / "bad.png")
    problem = "document.querySelector('#problem').checkVisibility() && document.querySelector('#problem').textContent"
    assert page.run(problem) == "ImageError: the file is not an image (decode)"
    drop(page, tmp_path / "good.png")
    assert page.run(problem) is False and page.run("document.body.dataset.state") == "painting"
