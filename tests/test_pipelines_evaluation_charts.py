"""Line charts: round ticks, and points where their values are."""

from __future__ import annotations

import re

import pytest

from pipelines.evaluation.charts import COLORS, MARKERS, Point, Series, line_chart, marker, ticks


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
    series = [Series("a", 0, [Point(0.0, 10.0, 2.0), Point(1.0, 20.0), Point(0.5, 30.0, None, "half")])]
    chart = line_chart("title", series, "x", [0.0, 0.5, 1.0], str)
    (line,) = chart.lines
    bars, markers = zip(*line.points, strict=True)
    (left, low), (right, middle), (half, high) = ((float(m.x), float(m.y)) for m in markers)
    assert half == pytest.approx((left + right) / 2) and middle == pytest.approx((low + high) / 2)
    assert left < right and low > high  # SVG counts from the top
    assert line.path == f"{left},{low} {right},{middle} {half},{high}"
    unit = (low - high) / 20
    top, bottom = map(float, re.search(r"h6M[\d.]+ ([\d.]+)V([\d.]+)", bars[0]).groups())
    assert (top, bottom) == (pytest.approx(low - 2 * unit, abs=0.1), pytest.approx(low + 2 * unit, abs=0.1))
    assert bars[1:] == ("", "") and [m.title for m in markers] == ["a", "a", "a half"]
    heights = [y for y, _ in chart.grid]
    assert min(heights) <= high and max(heights) >= bottom
    assert [label for _, label in chart.x_ticks] == ["0.0", "0.5", "1.0"]
    assert [x for x, _ in chart.x_ticks] == pytest.approx([left, half, right], abs=0.1)
    assert line_chart("t", [Series("a", 0, [])], "x", [0, 1], str).lines == ()


def test_labels_of_the_grid_have_the_digits_of_its_step_and_a_minus_sign():
    chart = line_chart("t", [Series("a", 0, [Point(0, -0.05), Point(1, 0.1)])], "x", [0, 1], str)
    assert [label for _, label in chart.grid] == ["−0.05", "0.00", "0.05", "0.10"]
    chart = line_chart("t", [Series("a", 0, [Point(0, 0), Point(1, 5000)])], "x", [0, 1], str)
    assert [label for _, label in chart.grid] == ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]


def test_series_that_are_not_joined_are_hollow_markers_without_a_line():
    chart = line_chart("t", [Series("a", 9, [Point(0, 1), Point(1, 2)], joined=False)], "x", [0, 1], str)
    (line,) = chart.lines
    assert line.path == "" and all(m.hollow and m.color == 9 - COLORS for _, m in line.points)
    chart = line_chart("t", [Series("a", 0, [Point(0, 1), Point(1, 2)], marked=False)], "x", [0, 1], str)
    assert chart.lines[0].path and chart.lines[0].points == [("", None), ("", None)]


def test_as_many_methods_as_colors_differ_in_color_and_neighbors_in_shape():
    markers = [marker(number, 0, 0) for number in range(COLORS)]
    assert len({m.color for m in markers}) == COLORS
    assert len({m.corners for m in markers[: len(MARKERS)]}) == len(MARKERS)
