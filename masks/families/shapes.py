"""The ``shapes`` family: random lines, filled circles and elliptic arcs.

Modeled on PConv-Keras, an early public implementation of the paper, which draws up to 20 of each kind, up to 6 % of the
side thick, and accepts whatever hole ratio results. Here the hole ratio is given: thickness and number of the shapes
follow from it, and drawing stops when it is reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from masks.canvas import Canvas
from masks.exactness import Mark, paint_until

# Thickness of lines and arcs, and radius of circles, as fractions of the side at scale 1.
MIN_THICKNESS, MAX_THICKNESS = 0.006, 0.06
# Total area of the shapes over that of the canvas at scale 1: about 30 shapes, which overlap and cover 0.27 of it.
TYPICAL_COVER = 0.31
# Above this hole ratio, shapes no longer grow with it.
MAX_RATIO = 0.95
# Far more than any ratio up to MAX_RATIO needs.
MAX_SHAPES = 512
BATCH = 32


def draw_shapes(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws lines, circles and arcs as holes.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    marks = _marks(rng, region.shape, target / region.size, canvas.border == "touch")
    paint_until(region, marks, target, canvas.max_holes)


def _marks(rng: np.random.Generator, shape: tuple[int, int], ratio: float, touch: bool) -> Iterator[Mark]:
    """``MAX_SHAPES`` random shapes for a canvas of ``shape`` = (height, width), to cover the fraction ``ratio`` of it.

    With ``touch`` the first one is a line from a pixel of the canvas's border.
    """
    height, width = shape
    side = (height + width) / 2
    # Shapes at random places cover 1 - exp(-a), where a is their total area over that of the canvas. As the ratio
    # grows, number and thickness contribute equally to the growth of a.
    scale = math.sqrt(-math.log1p(-min(ratio, MAX_RATIO)) / TYPICAL_COVER)
    thinnest = max(1, round(MIN_THICKNESS * side))
    thicknesses = max(1, round(MAX_THICKNESS * side * scale) - thinnest + 1)

    kinds = rng.integers(1, 21, 3).tolist()
    lines, circles = kinds[0] / sum(kinds), (kinds[0] + kinds[1]) / sum(kinds)
    for count in range(MAX_SHAPES):
        if count % BATCH == 0:
            numbers = rng.random((BATCH, 9)).tolist()
        kind, x, y, a, b, thick, turn, start, sweep = numbers[count % BATCH]
        thickness = thinnest + int(thick * thicknesses)
        point = (int(x * width), int(y * height))
        if touch and count == 0:
            yield _line(_on_side(point, int(turn * 4), shape), (int(a * width), int(b * height)), thickness)
        elif kind < lines:
            yield _line(point, (int(a * width), int(b * height)), thickness)
        elif kind < circles:
            yield Mark(cv2.circle, (point, thickness, 0, -1), math.pi * thickness * thickness, point)
        else:
            axes = (1 + int(a * width / 2), 1 + int(b * height / 2))
            yield _arc(point, axes, int(turn * 180), int(start * 360), 20 + int(sweep * 161), thickness)


def _on_side(point: tuple[int, int], side: int, shape: tuple[int, int]) -> tuple[int, int]:
    """``point`` = (x, y) projected onto the left, top, right or bottom (0 to 3) row or column of pixels."""
    height, width = shape
    x, y = point
    return ((0, y), (x, 0), (width - 1, y), (x, height - 1))[side]


def _line(start: tuple[int, int], end: tuple[int, int], thickness: int) -> Mark:
    return Mark(cv2.line, (start, end, 0, thickness), (math.dist(start, end) + thickness) * thickness, start)


def _arc(center: tuple[int, int], axes: tuple[int, int], turn: int, start: int, sweep: int, thickness: int) -> Mark:
    """Arc of an ellipse with half-axes ``axes`` rotated by ``turn``, from ``start`` over ``sweep``, all in degrees."""
    cos_turn, sin_turn = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    along, across = axes[0] * math.cos(math.radians(start)), axes[1] * math.sin(math.radians(start))
    anchor = (
        round(center[0] + along * cos_turn - across * sin_turn),
        round(center[1] + along * sin_turn + across * cos_turn),
    )
    length = math.radians(sweep) * (axes[0] + axes[1]) / 2
    args = (center, axes, turn, start, start + sweep, 0, thickness)
    return Mark(cv2.ellipse, args, (length + thickness) * thickness, anchor)
