"""Line charts as SVG that takes its colours from the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 16, 10, 34  # margins of the plotted area
COLOURS = 8  # that the style sheet has: c0 ... c7
MARKS = ("circle", "square", "diamond", "triangle")


class Point(NamedTuple):
    """One value, its standard error if it has one, and what is said of it."""

    x: float
    y: float
    error: float | None = None
    label: str = ""


class Series(NamedTuple):
    """Points of one name, joined by a line (or not: ``joined``) in colour ``number``."""

    name: str
    number: int
    points: Sequence[Point]
    joined: bool = True
    marked: bool = True


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about ``count``, from the last at or below ``low`` to the first at or above ``high``."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _number(value: float, step: float) -> str:
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")


def mark(kind: int, x: float, y: float, classes: str, title: str = "") -> str:
    """A marker; methods differ by its shape, too, not by colour alone."""
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    shape = MARKS[kind % len(MARKS)]
    if shape == "circle":
        return f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">{inner}</circle>'
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "diamond": ((0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0)),
        "triangle": ((0, -4), (4, 3.2), (-4, 3.2)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{classes}" points="{points}">{inner}</polygon>'


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    x_ticks: Sequence[float],
    show_x: Callable[[float], str],
) -> str:
    """An ``<svg>``: error bars of one standard error; an axis from the lowest to the highest value, bars included."""
    points = [point for one in series for point in one.points]
    if not points:
        return f'<p class="nothing">{html.escape(title)}: no values</p>'
    lows, highs = ([p.y + sign * (p.error or 0) for p in points] for sign in (-1, 1))
    y_ticks = ticks(min(lows), max(highs))
    x_span = (x_ticks[-1] - x_ticks[0]) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / x_span
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in y_ticks:
        _, y = at(x_ticks[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = _number(value, y_ticks[1] - y_ticks[0])
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for value in x_ticks:
        x, _ = at(value, y_ticks[0])
        text = html.escape(show_x(value))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    for one in series:
        parts += _draw(one, at)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _draw(one: Series, at: Callable[[float, float], tuple[float, float]]) -> list[str]:
    colour, parts = f"c{one.number % COLOURS}", []
    if one.joined and len(one.points) > 1:
        path = " ".join("{:.1f},{:.1f}".format(*at(point.x, point.y)) for point in one.points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
    for point in one.points:
        x, y = at(point.x, point.y)
        if point.error:
            top, bottom = (at(point.x, point.y + sign * point.error)[1] for sign in (1, -1))
            bar = f"M{x - 3:.1f} {top:.1f}h6M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 3:.1f} {bottom:.1f}h6"
            parts.append(f'<path class="bar {colour}" d="{bar}"/>')
        if one.marked:
            classes = f"mark {colour}" + ("" if one.joined else " hollow")
            parts.append(mark(one.number, x, y, classes, f"{one.name} {point.label}".strip()))
    return parts
