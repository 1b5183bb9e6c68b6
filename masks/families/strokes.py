"""The ``strokes`` family: free-form brush strokes that zigzag and vary in width from joint to joint.

Modeled on the free-form masks of gated convolution (Yu et al., "Free-Form Image Inpainting with Gated Convolution",
ICCV 2019, algorithm 1): lines between joints, with angles that alternate around a mean, round joints and round ends.
There the hole ratio is an outcome; here it is given, and width and number of the strokes follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from masks.canvas import Canvas
from masks.exactness import Mark, paint_until

MIN_LINES, MAX_LINES = 4, 12
# Lengths of lines as fractions of the side.
MIN_LENGTH, MAX_LENGTH = 0.06, 0.3
# Radii at joints as fractions of the side at hole ratio 1; they scale with the square root of the ratio.
MIN_RADIUS, MAX_RADIUS = 0.03, 0.13
# A stroke's radius varies between its own maximum and this fraction of it.
MIN_WIDTH = 0.45
# Tangents of half the angles between lines and the stroke's direction: 23 to 80 degrees, alternating in sign.
MIN_TURN, MAX_TURN = 0.2, 0.84
# Far more than ratios up to 0.9 need.
MAX_STROKES = 128
BATCH = 8
# A mask may exceed its target by 1/SLACK of the interval, so that many last lines stay whole.
SLACK = 8
# Outlines are placed in 16ths of a pixel.
SHIFT = 4


def draw_strokes(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws brush strokes as holes.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    max_holes = min(canvas.max_holes, target + (canvas.max_holes - canvas.min_holes) // SLACK)
    paint_until(region, _marks(rng, region.shape, target / region.size, canvas.border), target, max_holes)


def _marks(rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str) -> Iterator[Mark]:
    """Lines of ``MAX_STROKES`` strokes, one after another, to cover the fraction ``ratio`` of a canvas.

    With ``none`` all of them lie inside the canvas; with ``touch`` the first starts on one of its sides.
    """
    for first in range(0, MAX_STROKES, BATCH):
        joints, radii, counts = _joints(rng, shape, ratio, border, first == 0)
        outlines, areas = _outlines(joints, radii)
        # Line 0 has no length: it is the round start of the stroke.
        for stroke, count in enumerate(counts.tolist()):
            centers, sizes = joints[stroke].astype(int).tolist(), radii[stroke].astype(int).tolist()
            sums, start = areas[stroke].tolist(), centers[0]
            for outline, center, size, area in zip(outlines[stroke], centers[: count + 1], sizes, sums, strict=False):
                yield Mark(_paint, (outline, center, size), area, start)
                start = center


def _paint(mask: np.ndarray, outline: np.ndarray, end: list[int], radius: int) -> None:
    """A line with a round end."""
    cv2.fillConvexPoly(mask, outline, 0, cv2.LINE_8, SHIFT)
    cv2.circle(mask, end, radius, 0, -1)


def _joints(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str, first: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints [BATCH, MAX_LINES + 1, 2] as x and y, radii there [BATCH, MAX_LINES + 1], numbers of lines [BATCH].

    Joints and radii are whole pixels, computed with additions, multiplications, divisions and square roots only: IEEE
    754 rounds these alike on every machine.
    """
    last = np.array([shape[1] - 1.0, shape[0] - 1.0])
    side = math.sqrt(shape[0] * shape[1])
    numbers = rng.random((BATCH, MAX_LINES + 1, 3))
    counts = rng.integers(MIN_LINES, MAX_LINES + 1, BATCH)
    starts, own = rng.random((BATCH, 2)) * (last + 1), rng.random((BATCH, 3))

    own_radius = side * math.sqrt(ratio) * (MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * own[:, :1])
    radii = own_radius * (MIN_WIDTH + (1 - MIN_WIDTH) * numbers[:, :, 0])
    radii = np.clip(np.rint(radii), 1, (min(shape) - 1) // 4)

    # (1 - t^2, 2 t) / (1 + t^2) is the direction at an angle whose half has the tangent t.
    tangents = MIN_TURN + (MAX_TURN - MIN_TURN) * numbers[:, :, 1]
    tangents[:, ::2] *= -1
    # All directions: up to 45 degrees either way, plus a number of quarter turns.
    heading = (math.sqrt(2) - 1) * (2 * own[:, 1:2] - 1)
    tangents = (tangents + heading) / (1 - tangents * heading)
    squares = tangents * tangents
    lengths = side * (MIN_LENGTH + (MAX_LENGTH - MIN_LENGTH) * numbers[:, :, 2]) / (1 + squares)
    moves = np.stack([(1 - squares) * lengths, 2 * tangents * lengths], 2)
    quarters = (own[:, 2] * 4).astype(int)
    moves[quarters % 2 == 1] = moves[quarters % 2 == 1][:, :, ::-1]
    moves[quarters >= 2] *= -1

    if border == "touch" and first:
        axis, far = divmod(int(rng.integers(4)), 2)
        starts[0, axis] = last[axis] if far else 0
    moves[:, 0] = starts
    joints = moves.cumsum(1)
    # Strokes are reflected at the sides.
    inset = radii[:, :, None] if border == "none" else 0.0
    span = last - 2 * inset
    joints = inset + span - np.abs(np.mod(joints - inset, 2 * span) - span)
    return np.rint(joints), radii, counts


def _outlines(joints: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the quadrilaterals that join the circles at successive joints, and areas [BATCH, joints] with ends.

    Corners are int32 [BATCH, joints, 4, 2] in 16ths of a pixel. The first joint has none before it: a point.
    """
    before, radii_before = joints.copy(), radii.copy()
    before[:, 1:], radii_before[:, 1:] = joints[:, :-1], radii[:, :-1]
    moves = joints - before
    lengths = np.sqrt(moves[:, :, 0] * moves[:, :, 0] + moves[:, :, 1] * moves[:, :, 1])
    directions = moves / np.maximum(lengths, 1)[:, :, None]
    # Where the common tangents touch the circles, seen from their centers: tilted towards the smaller circle.
    tilt = np.clip((radii_before - radii) / np.maximum(lengths, 1), -1, 1)[:, :, None]
    across = np.sqrt(1 - tilt * tilt) * np.stack([-directions[:, :, 1], directions[:, :, 0]], 2)
    left, right = tilt * directions + across, tilt * directions - across
    old, new = radii_before[:, :, None], radii[:, :, None]
    corners = np.stack([before + old * left, joints + new * left, joints + new * right, before + old * right], 2)
    areas = (radii + radii_before) * lengths + math.pi * radii * radii
    return np.rint(corners * 2**SHIFT).astype(np.int32), areas
