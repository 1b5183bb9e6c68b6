"""The report's page without a browser: what it says, and its colours."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipelines.evaluation import charts, gallery, report_page, scoreboard
from trainer.metrics import validation_metrics


def make_report(name: str) -> tuple[dict, dict]:
    """metrics.json of one pair and one method, and the pair's row."""
    row = {"pair": 0, "bucket": 0, "border": 0, "mask": 0, "method": name, "image": name, "hole_ratio": 0.05}
    row |= dict.fromkeys(validation_metrics(), 0.5)
    cells, differences = scoreboard.summarize(scoreboard.board_of([row], name), [name], name)
    report = dict.fromkeys(("code_version", "parameters", "data", "masks_found", "reference", "lpips", "fid"), name)
    report |= {"counts": {"masks": 1, "pairs": 1, "rows": 1, "failed": 0}, "cells": cells, "differences": differences}
    return report | {"metrics": validation_metrics(), "methods": [{"name": name, "address": name}]}, row


def test_what_others_wrote_is_text():
    name = "<script>alert(1)</script>"
    report, row = make_report(name)
    pictures = [(0, name, b"x"), (0, gallery.TARGET, b"x"), (0, gallery.HOLES, b"x")]
    page = report_page.render_page(report, [row], {0: (0, "best")}, pictures, {name: {name: [(1, 1.0)]}}, False)
    assert page.count("<script>") == 1 and page.count("alert(1)") > 10
    assert "<!--" not in page and "http" not in page.replace("http-equiv", "")


def test_published_numbers_are_shown_when_asked_for_and_marked_as_of_other_data():
    report, row = make_report("network")
    # What the paper gives for its own method on masks that touch the border: interval, PSNR, SSIM, l1 in percent.
    rows = ["(0.1, 0.2] 28.32 0.870 1.09", "(0.2, 0.3] 25.25 0.779 1.88", "(0.3, 0.4] 22.89 0.689 2.84"]
    marks = "Published by Liu et al. (ECCV 2018)", "other data, so not to be compared digit by digit"
    shown, hidden = (report_page.render_page(report, [row], {}, [], {}, published) for published in (True, False))
    page = shown[shown.index("<h3>Published</h3>") :]
    assert [" ".join(re.findall(r">([^<>]+)</t[hd]>", line)) for line in page.split("<tr>")[2:5]] == rows
    assert all(mark in page for mark in marks) and "paper (other data)" in shown
    assert not any(mark in hidden for mark in (*marks, "paper (other data)", "28.32"))
    shown, hidden = (scoreboard.format_report(report, published) for published in (True, False))
    lines = shown[shown.index("## Published") :].splitlines()
    assert [line.strip("| ").replace(" | ", " ") for line in lines[-3:]] == rows
    assert all(mark in shown for mark in marks) and "## Published" not in hidden


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours #rgb or #rrggbb."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [r":root \{", r':root\[data-theme="dark"\] \{'], ids=["light", "dark"])
def test_texts_and_lines_stand_out(theme):
    block = re.search(theme + r"(.*?)\}", report_page.TEMPLATE.read_text(), re.DOTALL)[1]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", block))
    assert contrast(colours["page"], colours["ink"]) > 10 and contrast(colours["page"], colours["faint"]) > 4.5
    assert contrast(colours["problem-page"], colours["problem"]) > 4.5
    for number in range(charts.COLOURS):
        assert contrast(colours["page"], colours[f"c{number}"]) > 3
