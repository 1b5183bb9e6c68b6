"""The ``shapes`` family: random lines, filled circles and arcs of ellipses.

In the manner of PConv-Keras, an early public implementation of the paper, which draws up to 20 of each kind on a mask,
up to 6 % of the side thick, and takes the hole ratio that comes out. Here the ratio is asked for: thickness and number
of the shapes follow it, and drawing stops at it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

from masks.exactness import Mark, paint_until

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Thickness of lines and arcs, and radius of circles, as shares of the side at scale 1.
THINNEST, THICKEST = 0.006, 0.06
# Sum of the shapes' areas over the canvas's at scale 1: about 30 of them, which overlap and cover 0.27 of it.
TYPICAL_COVER = 0.31
# Above this share of the canvas, shapes no longer grow with the ratio.
LARGEST_RATIO = 0.95
# Far above what any ratio up to LARGEST_RATIO takes.
MAX_SHAPES = 512
BATCH = 32


def draw_shapes(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask of lines, circles and arcs.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels and border rule.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    mask = np.ones((spec.height, spec.width), np.uint8)
    region = spec.region(mask)
    target = spec.draw_target(rng)
    marks = _marks(rng, region.shape, target / region.size, spec.border == "touch")
    paint_until(region, marks, target, spec.most_holes)
    return mask


def _marks(rng: np.random.Generator, shape: tuple[int, int], ratio: float, touch: bool) -> Iterator[Mark]:
    """``MAX_SHAPES`` random shapes for a canvas of ``shape`` = (height, width), ``ratio`` of which is to be covered.

    With ``touch`` the first is a line from a pixel of the canvas's border.
    """
    height, width = shape
    side = (height + width) / 2
    # Shapes at random places cover 1 - exp(-a), where a is the sum of their areas over the canvas's. As the ratio
    # grows, number and thickness take equal shares of the growth of a.
    scale = math.sqrt(-math.log1p(-min(ratio, LARGEST_RATIO)) / TYPICAL_COVER)
    thinnest = max(1, round(THINNEST * side))
    thicknesses = max(1, round(THICKEST * side * scale) - thinnest + 1)

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
    """``point`` = (x, y) moved straight to the left, top, right or bottom (0 to 3) row or column of pixels."""
    height, width = shape
    x, y = point
    return ((0, y), (x, 0), (width - 1, y), (x, height - 1))[side]


def _line(start: tuple[int, int], end: tuple[int, int], thickness: int) -> Mark:
    return Mark(cv2.line, (start, end, 0, thickness), (math.dist(start, end) + thickness) * thickness, start)


def _arc(centre: tuple[int, int], axes: tuple[int, int], turn: int, start: int, sweep: int, thickness: int) -> Mark:
    """Part of an ellipse with half-axes ``axes`` turned by ``turn``, from ``start`` over ``sweep``, all in degrees."""
    cos_turn, sin_turn = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    along, across = axes[0] * math.cos(math.radians(start)), axes[1] * math.sin(math.radians(start))
    anchor = (
        round(centre[0] + along * cos_turn - across * sin_turn),
        round(centre[1] + along * sin_turn + across * cos_turn),
    )
    length = math.radians(sweep) * (axes[0] + axes[1]) / 2
    args = (centre, axes, turn, start, start + sweep, 0, thickness)
    return Mark(cv2.ellipse, args, (length + thickness) * thickness, anchor)
