"""The report in headless Chromium: nothing fetched, nothing overflows, sliders and the theme work."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation import gallery, report_page, scoreboard
from trainer.metrics import validation_metrics

METHODS = ["network", "another-network-with-a-long-name", "telea", "ns", "mean"]
PHONE, DESKTOP = 390, 1440
FAILED = 7  # pair for which one method has no image


def make_page() -> str:
    """A report of four pairs in each of five intervals; the sixth is empty, one image failed, names are long."""
    rng = np.random.default_rng(0)
    rows, board = [], {}
    for pair in range(20):
        place = {"pair": pair, "bucket": pair % 5, "border": pair // 5 % 2}
        place |= {"mask": pair, "hole_ratio": 0.1 * (pair % 5)}
        found = []
        for method in METHODS:
            row = {**place, "method": method, "image": f"val/n01/{'long_' * 12}{pair}.JPEG"}
            if (pair, method) == (FAILED, "ns"):
                row["error"] = "ValueError: <b>not</b> a number"
            else:
                row |= {name: float(rng.uniform(0.1, 30)) for name in (*validation_metrics(), scoreboard.LPIPS)}
            if (pair, method) == (FAILED, METHODS[0]):
                row["psnr_holes"] = 99.0  # the best of its interval, so that it is shown
            found.append(row)
        rows += found
        scoreboard.merge_into(board, scoreboard.board_of(found, METHODS[0]))
    places = list(itertools.product((*range(5), scoreboard.ANY), (0, 1, scoreboard.ANY)))
    distances = {method: {place: (4, float(rng.uniform(10, 300))) for place in places} for method in METHODS}
    cells, differences = scoreboard.summarize(board, METHODS, METHODS[0], distances)
    report = {
        "code_version": "0",
        "parameters": {"seed": 0},
        "data": {"images": {"address": "gs://bucket/" + "very-long-folder-name/" * 8}},
        "counts": {"masks": 20, "pairs": 20, "rows": 100, "failed": 1},
        "masks_found": [],
        "reference": METHODS[0],
        "metrics": list(cells[0]["metrics"]),
        "lpips": None,
        "fid": None,
        "methods": [{"name": name, "address": f"gs://bucket/{'long-' * 30}{name}"} for name in METHODS],
        "cells": cells,
        "differences": differences,
    }
    chosen = gallery.choose_pairs(rows, METHODS[0])
    images = []
    for pair in chosen:
        for i, name in enumerate((gallery.HOLES, *METHODS, gallery.TARGET)):
            if (pair, name) != (FAILED, "ns"):
                color = np.full((64, 64, 3), (255 - 30 * i, 40 * i, 10 * pair), np.uint8)
                images.append((pair, name, gallery._encode(color)))
    curves = {"network": {"loss/total": [(step, 1 / step) for step in range(1, 150)], "validation/psnr": [(100, 20.0)]}}
    return report_page.render_page(report, rows, chosen, images, curves, published=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(make_page(), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page):
    """A fresh page at desktop width; at the end it must have been silent and have asked the network for nothing."""
    browser.events.clear()
    browser.resize(DESKTOP)
    browser.open(page.as_uri())
    yield browser
    browser.run("1")
    said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in said] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked[0] == page.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []


OVERFLOWS = """
(() => {
  const wide = [...document.querySelectorAll('body *')].filter(e => {
    if (!e.checkVisibility() || e.closest('svg') || !e.textContent.trim() || e.matches('option, select')) return false;
    const box = e.getBoundingClientRect();
    return box.right > innerWidth + 0.5 || box.left < -0.5 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0;
  });
  const page = document.documentElement.scrollWidth > innerWidth ? ['the page'] : [];
  return page.concat(wide.map(e => e.tagName + '.' + e.className + ': ' + e.textContent.slice(0, 60)));
})()
"""
# Texts of charts outside of the window or on each other.
SVG_CLASHES = """
(() => {
  const wrong = [];
  for (const svg of [...document.querySelectorAll('.charts svg')].filter(s => s.checkVisibility())) {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, a], i) => {
      if (a.right > innerWidth || a.left < 0) wrong.push(text);
      boxes.slice(i + 1).forEach(([other, b]) => {
        if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)
          wrong.push(text + ' on ' + other);
      });
    });
  }
  return wrong;
})()
"""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_text_overflows(opened, width):
    opened.resize(width)
    assert opened.run("innerWidth") == width
    opened.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for region in ("whole image", "holes"):
        for border in ("all", "touch", "none"):
            for value in (region, border):
                opened.run(f"""document.querySelector('.switch [value="{value}"]').click()""")
            assert opened.run("document.querySelectorAll('.view:not([hidden])').length") == 3
            assert opened.run(OVERFLOWS) == []
            assert opened.run(SVG_CLASHES) == []


def test_every_image_is_drawn(opened):
    count, broken = opened.run(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth == 64, () => false)))"
        ".then(found => [found.length, found.filter(ok => !ok).length])"
    )
    # Three pairs of five intervals in seven versions, except the image that failed.
    assert (count, broken) == (15 * 7 - 1, 0)


def shown_colors(browser) -> tuple[list[int], list[int], float]:
    """Colors of the first image's left and right edges, and where, in percent, the one gives way to the other."""
    x, y, width = map(round, middle_of(browser, ".compare"))
    line = browser.screenshot()[y - width // 4, x - width // 2 : x + width // 2].astype(int)
    first, last = line[6], line[-6]
    changed = np.flatnonzero(np.abs(line - first).sum(1) > 30)
    return first.tolist(), last.tolist(), 100 * changed[0] / width if len(changed) else 100.0


def is_number(color: list[int], number: int) -> bool:
    """Whether it is what `make_page` gives to a pair's image of that number, up to the pair's blue."""
    return color[:2] == pytest.approx([255 - 30 * number, 40 * number], abs=8)


def middle_of(browser, selector: str) -> tuple[float, float, float]:
    """x and y of an element's middle, and its width, scrolled into view."""
    return browser.run(
        f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}});"
        " const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2, b.width]; })()"
    )


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_slider_uncovers_the_other_image(opened, width):
    opened.resize(width)
    x, y, wide = middle_of(opened, ".compare")
    first, last, at = shown_colors(opened)
    assert is_number(first, 0) and is_number(last, 1) and abs(at - 50) < 3
    opened.press(x, y, to=x - 0.3 * wide)
    assert abs(shown_colors(opened)[2] - 20) < 4
    opened.press(x - 0.3 * wide, y, to=x + 0.4 * wide)
    assert abs(shown_colors(opened)[2] - 90) < 4
    for _ in range(20):
        opened.key("ArrowLeft", 37)  # the slider that was dragged has the focus
    assert abs(shown_colors(opened)[2] - 70) < 4
    opened.key("Home", 36)
    assert is_number(shown_colors(opened)[0], 1)
    opened.key("End", 35)
    assert is_number(shown_colors(opened)[1], 0)


def test_sliders_compare_what_is_chosen(opened):
    for side, value in (("left", "target"), ("right", "mean")):
        select = f"document.querySelector('select[name={side}]')"
        opened.run(f"{select}.value = '{value}', {select}.dispatchEvent(new Event('change'))")
    first, last, at = shown_colors(opened)
    assert is_number(first, 6) and is_number(last, 5) and abs(at - 50) < 3
    assert opened.run("document.querySelector('.at-left').textContent") == "target"


def test_all_of_it_is_reached_by_keyboard(opened):
    """Tab stops at links, the button, one of each switch, what opens, choices and sliders, each with an outline."""
    stops = []
    for _ in range(100):
        opened.key("Tab", 9)
        name, width = opened.run(
            "(() => { const e = document.activeElement, seen = e.matches('.switch input') ? e.nextElementSibling :"
            " e.matches('.compare input') ? e.parentElement : e; return [e.matches('.switch input') ? e.name :"
            " e.id || e.tagName + (e.type || ''), parseFloat(getComputedStyle(seen).outlineWidth)]; })()"
        )
        if name == "BODY":
            break
        assert width >= 2, name
        stops.append(name)
        if name == "theme":
            opened.key("Enter", 13)
        elif name in ("region", "border"):
            opened.key("ArrowRight", 39)
    assert [name for name, _ in itertools.groupby(stops)][:5] == ["A", "theme", "region", "border", "SUMMARY"]
    assert stops.count("INPUTrange") == 15
    assert opened.run("document.documentElement.dataset.theme") == "dark"
    shown = opened.run("(e => [e.dataset.region, e.dataset.border])(document.querySelector('.view:not([hidden])'))")
    assert shown == ["holes", "touch"]


def test_the_theme_follows_the_system_and_the_button(opened, page):
    corner = opened.screenshot()[5, 5].mean()
    assert corner > 240
    x, y, _ = middle_of(opened, "#theme")
    opened.press(x, y)
    assert opened.screenshot()[5, 5].mean() < 40
    opened.press(x, y)
    assert opened.screenshot()[5, 5].mean() == corner
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    opened.open(page.as_uri() + "#again")
    assert opened.screenshot()[5, 5].mean() < 40
    opened.call("Emulation.setEmulatedMedia", features=[])
    assert opened.screenshot()[5, 5].mean() > 240
