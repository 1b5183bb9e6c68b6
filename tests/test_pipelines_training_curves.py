"""Curves of a run, read back from what the run's own log wrote, and charts of them."""

from __future__ import annotations

import re

import pytest

from pipelines import training_curves
from pipelines.evaluation.charts import Point, Series, line_chart, ticks
from pipelines.training_curves import read_curves, thin
from trainer.tensorboard import EventLog


def log(run: str, first: int, values: dict[int, float], tag="loss/total") -> None:
    events = EventLog(run, first)
    for step, value in values.items():
        events.add_scalars(step, {tag: value, "other": 7.0})
    assert events.close() is None


def test_a_run_that_went_on_replaces_what_was_logged_beyond(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    times = iter((1000.0, 2000.0, 3000.0))
    for first, values in ((0, {10: 1.0, 20: 2.0, 30: 3.0}), (20, {30: 3.5, 40: 4.0})):
        began = next(times)
        monkeypatch.setattr("trainer.tensorboard.time.time", lambda began=began: began)
        log(run, first, values)
    assert read_curves(run, ["loss/total", "validation/psnr"]) == {
        "loss/total": [(10, 1.0), (20, 2.0), (30, 3.5), (40, 4.0)]
    }
    monkeypatch.setattr("trainer.tensorboard.time.time", lambda: 3000.0)
    log(run, 10, {15: 9.0})
    assert read_curves(run, ["loss/total"])["loss/total"] == [(10, 1.0), (15, 9.0)]
    assert read_curves(run, ["nothing"]) == {} and read_curves(str(tmp_path / "none"), ["loss/total"]) == {}


def test_long_curves_become_means_of_neighbours():
    curve = [(step, float(step)) for step in range(1, 1001)]
    short = thin(curve, 100)
    assert len(short) == 100 and short[0] == (10, 5.5) and short[-1] == (1000, 995.5)
    assert thin(curve[:7], 3) == [(3, 2.0), (6, 5.0), (7, 7.0)] and thin(curve[:5]) == curve[:5] and thin([]) == []
    assert training_curves.POINTS == 200


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (14.1, 36.2, [10, 15, 20, 25, 30, 35, 40]),
        (0.47, 0.98, [0.4, 0.6, 0.8, 1.0]),
        (5.0, 5.0, [5, 6]),
        (0.0, 0.0, [0, 0.2]),
        (-3.2, -1.1, [-3.5, -3, -2.5, -2, -1.5, -1]),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_points_stand_where_their_values_are():
    series = [Series("a", 0, [Point(0.0, 10.0, 2.0), Point(1.0, 20.0), Point(0.5, 30.0, None, "<half>")])]
    chart = line_chart("title", series, "x", [0.0, 0.5, 1.0], str)
    places = [tuple(map(float, found)) for found in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (left, low), (right, middle), (half, high) = places
    assert half == pytest.approx((left + right) / 2) and middle == pytest.approx((low + high) / 2)
    assert left < right and low > high  # SVG counts from the top
    unit = (low - high) / 20
    top, bottom = map(float, re.search(r"h6M[\d.]+ ([\d.]+)V([\d.]+)", chart).groups())
    assert (top, bottom) == (pytest.approx(low - 2 * unit, abs=0.1), pytest.approx(low + 2 * unit, abs=0.1))
    assert "<title>a &lt;half&gt;</title>" in chart and chart.count('class="bar') == 1
    grid = [float(y) for y in re.findall(r'class="grid"[^>]* y1="([\d.]+)"', chart)]
    assert min(grid) <= high and max(grid) >= bottom
    assert "no values" in line_chart("t", [Series("a", 0, [])], "x", [0, 1], str)
