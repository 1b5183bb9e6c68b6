"""Line charts as coordinates in the view box of an SVG, which ``report.html.j2`` draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 16, 10, 34  # margins of the plot area
COLORS = 8  # classes c0 ... c7 of the page's style sheet
# Corners of each marker around its center. Methods differ by shape as well, not by color alone.
MARKERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),  # a circle
    ((-3, -3), (3, -3), (3, 3), (-3, 3)),  # square
    ((0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0)),  # diamond
    ((0, -4), (4, 3.2), (-4, 3.2)),  # triangle
)


class Point(NamedTuple):
    """One value, its standard error (None: unknown), and its tooltip."""

    x: float
    y: float
    error: float | None = None
    label: str = ""


class Series(NamedTuple):
    """Points of one name. ``number`` selects color and marker; ``joined`` connects the points by a line."""

    name: str
    number: int
    points: Sequence[Point]
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Marker:
    """A drawn point. ``corners`` are those of a polygon, as SVG writes them; empty for a circle."""

    color: int
    x: str
    y: str
    corners: str = ""
    hollow: bool = False
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A drawn series: ``path`` of the line (empty without one), and each point's error bar and marker, if any."""

    color: int
    path: str
    points: list[tuple[str, Marker | None]]


@dataclass(frozen=True)
class Chart:
    """A drawn chart; without values it has no lines. ``grid`` has (y, label) of its lines, ``x_ticks`` (x, label)."""

    title: str
    x_label: str = ""
    grid: Sequence[tuple[float, str]] = ()
    x_ticks: Sequence[tuple[float, str]] = ()
    lines: Sequence[Line] = ()


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about ``count``, from the last at or below ``low`` to the first at or above ``high``."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def marker(number: int, x: float, y: float, hollow: bool = False, title: str = "") -> Marker:
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in MARKERS[number % len(MARKERS)])
    return Marker(number % COLORS, f"{x:.1f}", f"{y:.1f}", corners, hollow, title)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    x_ticks: Sequence[float],
    show_x: Callable[[float], str],
) -> Chart:
    """A chart whose y axis spans all values and their error bars, of one standard error each way."""
    points = [point for one in series for point in one.points]
    if not points:
        return Chart(title)
    lows, highs = ([p.y + sign * (p.error or 0) for p in points] for sign in (-1, 1))
    y_ticks = ticks(min(lows), max(highs))
    x_span = (x_ticks[-1] - x_ticks[0]) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / x_span
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    return Chart(
        title,
        x_label,
        grid=[(place(x_ticks[0], y)[1], f"{y:,.{decimals}f}".replace("-", "−")) for y in y_ticks],
        x_ticks=[(place(x, y_ticks[0])[0], show_x(x)) for x in x_ticks],
        lines=[_draw(one, place) for one in series],
    )


def _draw(one: Series, place: Callable[[float, float], tuple[float, float]]) -> Line:
    path = " ".join("{:.1f},{:.1f}".format(*place(point.x, point.y)) for point in one.points)
    drawn = []
    for point in one.points:
        x, y = place(point.x, point.y)
        bar = ""
        if point.error:
            top, bottom = (place(point.x, point.y + sign * point.error)[1] for sign in (1, -1))
            bar = f"M{x - 3:.1f} {top:.1f}h6M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {bottom:.1f}h6"
        title = f"{one.name} {point.label}".strip()
        drawn.append((bar, marker(one.number, x, y, not one.joined, title) if one.marked else None))
    return Line(one.number % COLORS, path if one.joined and len(one.points) > 1 else "", drawn)
