"""A new metric takes two places, a function and a row: everything that reads the table then has it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipelines.evaluation import report_page, rounds, scoreboard
from pipelines.evaluation.rounds import Case, Facts, Round
from trainer.config import CheckpointConfig
from trainer.metrics import HOLES, IMAGE, METRICS, Metric, image_quality, intervals, validation_metrics
from trainer.training.validation import Validated


def make_pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An output uint8 [16, 16, 3] 51 of 255 too bright in all holes, its target, and a mask that is half hole."""
    target, mask = np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), np.uint8)
    mask[:8] = 0
    return np.where(mask[..., None] == 1, target, np.uint8(51)), target, mask


@pytest.fixture
def planted(monkeypatch):
    """A metric of each region under the names ``bias`` and ``bias_holes``: the mean of output - target."""
    compare = image_quality.compare

    def compare_more(output, target, mask):
        bias, holes = np.mean(output - target, axis=(1, 2, 3)), 1 - mask
        inside = np.sum((output - target) * holes, axis=(1, 2, 3)) / (3 * np.sum(holes, axis=(1, 2, 3)))
        return compare(output, target, mask) | {"bias": bias, "bias_holes": inside}

    monkeypatch.setattr(image_quality, "compare", compare_more)
    monkeypatch.setitem(METRICS, "bias", Metric("Bias", "1/1000", 1000, 1, False))
    monkeypatch.setitem(METRICS, "bias_holes", Metric("Bias", "1/1000", 1000, 1, False, HOLES))


def test_a_new_metric_reaches_validation_and_its_log_line(planted):
    found = intervals.score(*make_pair())
    assert found["bias"] == pytest.approx(0.1) and found["bias_holes"] == pytest.approx(0.2)
    cells = intervals.summarize(intervals.tally_of([found | {"bucket": 4}, found | {"bucket": 5, "bias": 0.3}]))
    assert cells[intervals.ALL]["bias"] == pytest.approx(0.2) and cells[4]["bias_holes"] == pytest.approx(0.2)
    assert cells[intervals.ALL]["bias_error"] == pytest.approx(0.1)
    line = str(Validated(step=1, cells=cells))
    assert "  Bias 200.0 1/1000  of 2 pairs" in line
    assert CheckpointConfig(best="bias").best == "bias"


def test_a_new_metric_reaches_the_evaluations_table_and_page(planted):
    output, target, mask = make_pair()
    decoded = Round([Case(Facts(pair, pair, "a.jpg", 4, 0, 0.5), target, mask) for pair in range(2)], [])
    rows = [row for name in ("a", "b") for row in rounds.score_round((decoded, [output, output]), name)]
    board: dict = {}
    for pair in range(2):
        scoreboard.merge_into(board, scoreboard.board_of([row for row in rows if row["pair"] == pair], "a"))
    cells, differences = scoreboard.summarize(board, ["a", "b"], "a")
    head, _, *_, last = scoreboard.format_table(cells).splitlines()
    assert head.endswith("| Bias (1/1000) | Bias (1/1000), holes |")
    assert last.endswith("| 100.0 ± 0.0 | 200.0 ± 0.0 |")
    report = dict.fromkeys(("code_version", "parameters", "data", "masks_found", "reference", "lpips", "fid"), "a")
    report |= {"counts": {"masks": 2, "pairs": 2, "rows": 4, "failed": 0}, "cells": cells, "differences": differences}
    report |= {"metrics": list(cells[0]["metrics"]), "methods": [{"name": name, "address": name} for name in "ab"]}
    page = report_page.render_page(report, rows, {}, [], {}, False)
    assert page.count("<figcaption>Bias (1/1000)</figcaption>") == 6  # of two regions and three choices of border
    assert "100.0" in page and "200.0" in page


def test_the_metrics_there_are():
    assert validation_metrics() == ("psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes")
    assert validation_metrics(IMAGE) == ("psnr", "ssim", "l1")
    assert [metric.heading for metric in METRICS.values() if metric.region == IMAGE] == [
        "PSNR (dB)",
        "SSIM",
        "l1 (%)",
        "LPIPS",
        "FID",
    ]
    output, target, mask = (array[None] for array in make_pair())
    found = image_quality.compare(output / 255, target / 255, mask[..., None].astype(float))
    assert tuple(found) == validation_metrics()
    assert [METRICS[name].format(0.12345, sign) for name, sign in (("l1", ""), ("ssim", "+"))] == ["12.35", "+0.123"]


def test_directions_agree_with_the_functions():
    output, target, mask = make_pair()
    worse = np.where(mask[..., None] == 1, output, np.uint8(255))
    good, bad = (intervals.score(image, target, mask) for image in (output, worse))
    for name in validation_metrics():
        assert (good[name] > bad[name]) == METRICS[name].higher_is_better


def test_the_table_needs_the_standard_library_only():
    """The training configuration reads it, and that is read by light commands."""
    code = "import sys, trainer.metrics; print({'numpy', 'keras', 'tensorflow', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "set()"
