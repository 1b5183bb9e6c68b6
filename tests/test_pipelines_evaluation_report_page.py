"""The report's page without a browser: what it says, and its colors."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest

from pipelines.evaluation import charts, gallery, report_page, scoreboard
from trainer.metrics import validation_metrics

BASELINE = "telea"


def make_report(name: str) -> tuple[dict, dict]:
    """metrics.json of one pair and two methods, with ``name`` wherever a text is not ours, and the first's rows."""
    row = {"pair": 0, "bucket": 0, "border": 0, "mask": 0, "method": name, "image": f"val/{name}", "hole_ratio": 0.05}
    row |= dict.fromkeys(validation_metrics(), 0.5)
    rows = [row, row | {"method": BASELINE}]
    cells, differences = scoreboard.summarize(scoreboard.board_of(rows, name), [name, BASELINE], name)
    for cell in cells + differences:
        if cell["bucket"] == 0:
            cell["interval"] = name
    report = dict.fromkeys(("code_version", "parameters", "data", "masks_found", "reference", "lpips", "fid"), name)
    report |= {"counts": {"masks": 1, "pairs": 1, "rows": 2, "failed": 0}, "cells": cells, "differences": differences}
    methods = [{"name": name, "address": name}, {"name": BASELINE}]
    return report | {"metrics": validation_metrics(), "methods": methods}, rows


def render(name: str, published: bool = False) -> str:
    report, rows = make_report(name)
    images = [(0, name, b"x"), (0, gallery.TARGET, b"x"), (0, gallery.HOLES, b"x")]
    curves = {name: {name: [(1, 1.0)]}, BASELINE: {}}
    return report_page.render_page(report, rows, {0: (0, "best")}, images, curves, published)


class Outline(HTMLParser):
    """Elements with the names of their attributes, as a browser reads them, and all values and texts but JSON's."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, *(name for name, _ in attributes)))
        self.texts += [value for _, value in attributes if value is not None]

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def handle_data(self, data):
        if self.elements[-1:] != [("pre",)]:
            self.texts.append(data)

    def count(self, name: str) -> int:
        return sum(text.count(name) for text in self.texts)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)<", "<script>alert(1)<"),
        ("\"><img src=x onerror='alert(1)'>", "\"><img src=x onerror='alert(1)'>"),
        ("' onload='alert(1)", "' onload='alert(1)"),
        ("<!-- & &amp; &lt; -->", "<!-- & &amp; &lt; -->"),
        ("{{ methods }}{% raw %}{#", "{{ methods }}{% raw %}{#"),
        ("%s {0} \\1", "%s {0} \\1"),
        ("a\0b\x1b[31m\rc\x7f\x85", r"a\x00b\x1b[31m\rc\x7f\x85"),
        ("\udcff\u202efdp\u2066", r"\udcff\u202efdp\u2066"),
        ("größe 画像 🖼", "größe 画像 🖼"),
    ],
)
def test_texts_of_others_stay_texts_wherever_they_stand(name, shown):
    plain, page = Outline(render("plain-name")), Outline(render(name))
    assert page.elements == plain.elements
    # In charts with their legend, tables, switches, sliders and cards of every metric, region and border class.
    assert page.count(shown) == plain.count("plain-name") > 100


def test_the_page_is_one_file_that_utf8_can_hold():
    page = render("</script></style></title></select>\udcff\x00")
    assert page.startswith("<!doctype html>") and page.count("</script>") == page.count("<script>") == 1
    assert page.count("</style>") == 1 and "<!--" not in page and "http" not in page
    assert not re.search(r"(src|href)=\"(?!#|data:)|@import|url\(", page)
    assert not set(page.encode().decode()) & set(map(chr, report_page._ESCAPES))


def test_a_value_that_the_template_needs_and_lacks_is_an_error():
    report, rows = make_report("network")
    del report["methods"][0]["address"]
    with pytest.raises(jinja2.UndefinedError, match="address"):
        report_page.render_page(report, rows, {}, [], {}, False)


def test_the_best_mean_of_an_interval_is_bold_but_no_difference_is():
    report, rows = make_report("network")
    for cell in report["cells"]:
        for name, low in (("psnr", 20.0), ("l1", 0.01)):
            cell["metrics"][name] |= {"mean": low + (cell["method"] == BASELINE) / 100, "error": 0.005}
    page = report_page.render_page(report, rows, {}, [], {}, False)
    scores, differences = page[page.index("<table") :].split("<details", 1)
    assert "<b>20.01</b><small> ±&#8239;0.01</small>" in scores and "<td>20.00<small>" in scores  # more is better
    assert "<b>1.00</b>" in scores and "<td>2.00<" in scores  # less is
    assert "<b>" not in differences[: differences.index("</details>")] and "+0.00" in differences


def test_published_numbers_are_shown_when_asked_for_and_marked_as_of_other_data():
    report, rows = make_report("network")
    # What the paper gives for its own method on masks that touch the border: interval, PSNR, SSIM, l1 in percent.
    published_rows = ["(0.1, 0.2] 28.32 0.870 1.09", "(0.2, 0.3] 25.25 0.779 1.88", "(0.3, 0.4] 22.89 0.689 2.84"]
    marks = "Published by Liu et al. (ECCV 2018)", "other data, so not to be compared digit by digit"
    shown, hidden = (report_page.render_page(report, rows, {}, [], {}, published) for published in (True, False))
    page = shown[shown.index("<h3>Published</h3>") :]
    assert [" ".join(re.findall(r">([^<>]+)</t[hd]>", line)) for line in page.split("<tr>")[2:5]] == published_rows
    assert all(mark in page for mark in marks) and "paper (other data)" in shown
    assert not any(mark in hidden for mark in (*marks, "paper (other data)", "28.32"))
    shown, hidden = (scoreboard.format_report(report, published) for published in (True, False))
    lines = shown[shown.index("## Published") :].splitlines()
    assert [line.strip("| ").replace(" | ", " ") for line in lines[-3:]] == published_rows
    assert all(mark in shown for mark in marks) and "## Published" not in hidden


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colors #rgb or #rrggbb."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        channels = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [r":root \{", r':root\[data-theme="dark"\] \{'], ids=["light", "dark"])
def test_texts_and_lines_stand_out(theme):
    block = re.search(theme + r"(.*?)\}", report_page.TEMPLATE.read_text(), re.DOTALL)[1]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", block))
    assert contrast(colors["page"], colors["ink"]) > 10 and contrast(colors["page"], colors["faint"]) > 4.5
    assert contrast(colors["problem-page"], colors["problem"]) > 4.5
    for number in range(charts.COLORS):
        assert contrast(colors["page"], colors[f"c{number}"]) > 3
