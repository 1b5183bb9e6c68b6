"""The ``strokes`` family: free-form brush strokes, which zigzag and change their width from joint to joint.

In the manner of the free-form masks of gated convolution (Yu et al., "Free-Form Image Inpainting with Gated
Convolution", ICCV 2019, algorithm 1): lines from joint to joint, with angles that alternate around a mean, round joints
and ends. There the hole ratio is what comes out; here it is asked for, and width and number of the strokes follow it.
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

FEWEST_LINES, MOST_LINES = 4, 12
# Lengths of lines as shares of the side.
SHORTEST, LONGEST = 0.06, 0.3
# Radii at joints as shares of the side when all of it is to be covered; they follow the square root of the ratio.
THINNEST, THICKEST = 0.03, 0.13
# A stroke's radius varies between its own largest and this share of it.
LEAST_WIDTH = 0.45
# Tangents of half the angles between lines and the stroke's direction: 23 to 80 degrees, to either side in turn.
LEAST_TURN, MOST_TURN = 0.2, 0.84
# Far above what ratios up to 0.9 take.
MAX_STROKES = 128
BATCH = 8
# A mask may have more holes than its target, by this part of the interval: many last lines then stay whole.
SLACK = 8
# Outlines are placed in 16ths of a pixel.
SHIFT = 4


def draw_strokes(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask of brush strokes.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels and border rule.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    mask = np.ones((spec.height, spec.width), np.uint8)
    region = spec.region(mask)
    target = spec.draw_target(rng)
    most = min(spec.most_holes, target + (spec.most_holes - spec.fewest_holes) // SLACK)
    paint_until(region, _marks(rng, region.shape, target / region.size, spec.border), target, most)
    return mask


def _marks(rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str) -> Iterator[Mark]:
    """Lines of ``MAX_STROKES`` strokes, one after another, for a canvas of which ``ratio`` is to be covered.

    With ``none`` all of them lie inside the canvas; with ``touch`` the first begins on one of its sides.
    """
    for first in range(0, MAX_STROKES, BATCH):
        joints, radii, counts = _joints(rng, shape, ratio, border, first == 0)
        outlines, areas = _outlines(joints, radii)
        # The line with number 0 has no length: it is the round end that the stroke begins with.
        for stroke, count in enumerate(counts.tolist()):
            centres, sizes = joints[stroke].astype(int).tolist(), radii[stroke].astype(int).tolist()
            sums, start = areas[stroke].tolist(), centres[0]
            for outline, centre, size, area in zip(outlines[stroke], centres[: count + 1], sizes, sums, strict=False):
                yield Mark(_paint, (outline, centre, size), area, start)
                start = centre


def _paint(mask: np.ndarray, outline: np.ndarray, end: list[int], radius: int) -> None:
    """A line with a round end."""
    cv2.fillConvexPoly(mask, outline, 0, cv2.LINE_8, SHIFT)
    cv2.circle(mask, end, radius, 0, -1)


def _joints(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str, first: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints [BATCH, MOST_LINES + 1, 2] as x and y, radii there [BATCH, MOST_LINES + 1], numbers of lines [BATCH].

    Joints and radii are whole numbers of pixels. What leads to them is adding, multiplying, dividing and square
    roots, no more: IEEE 754 rounds these alike everywhere.
    """
    last = np.array([shape[1] - 1.0, shape[0] - 1.0])
    side = math.sqrt(shape[0] * shape[1])
    numbers = rng.random((BATCH, MOST_LINES + 1, 3))
    counts = rng.integers(FEWEST_LINES, MOST_LINES + 1, BATCH)
    starts, own = rng.random((BATCH, 2)) * (last + 1), rng.random((BATCH, 3))

    own_radius = side * math.sqrt(ratio) * (THINNEST + (THICKEST - THINNEST) * own[:, :1])
    radii = own_radius * (LEAST_WIDTH + (1 - LEAST_WIDTH) * numbers[:, :, 0])
    radii = np.clip(np.rint(radii), 1, (min(shape) - 1) // 4)

    # (1 - t^2, 2 t) / (1 + t^2) is the direction at an angle whose half has the tangent t.
    tangents = LEAST_TURN + (MOST_TURN - LEAST_TURN) * numbers[:, :, 1]
    tangents[:, ::2] *= -1
    # All directions: up to 45 degrees either way, plus a number of quarter turns.
    heading = (math.sqrt(2) - 1) * (2 * own[:, 1:2] - 1)
    tangents = (tangents + heading) / (1 - tangents * heading)
    squares = tangents * tangents
    lengths = side * (SHORTEST + (LONGEST - SHORTEST) * numbers[:, :, 2]) / (1 + squares)
    moves = np.stack([(1 - squares) * lengths, 2 * tangents * lengths], 2)
    quarters = (own[:, 2] * 4).astype(int)
    moves[quarters % 2 == 1] = moves[quarters % 2 == 1][:, :, ::-1]
    moves[quarters >= 2] *= -1

    if border == "touch" and first:
        axis, far = divmod(int(rng.integers(4)), 2)
        starts[0, axis] = last[axis] if far else 0
    moves[:, 0] = starts
    joints = moves.cumsum(1)
    # A stroke that comes to a side turns back there.
    inset = radii[:, :, None] if border == "none" else 0.0
    span = last - 2 * inset
    joints = inset + span - np.abs(np.mod(joints - inset, 2 * span) - span)
    return np.rint(joints), radii, counts


def _outlines(joints: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between each joint and the one before it, what touches both of their circles: int32 [BATCH, joints, 4, 2].

    In 16ths of a pixel. With areas, ends included, [BATCH, joints]. The first has no joint before it and is a point.
    """
    before, radii_before = joints.copy(), radii.copy()
    before[:, 1:], radii_before[:, 1:] = joints[:, :-1], radii[:, :-1]
    moves = joints - before
    lengths = np.sqrt(moves[:, :, 0] * moves[:, :, 0] + moves[:, :, 1] * moves[:, :, 1])
    directions = moves / np.maximum(lengths, 1)[:, :, None]
    # Where tangents touch the circles, seen from their centres: turned towards the smaller circle.
    tilt = np.clip((radii_before - radii) / np.maximum(lengths, 1), -1, 1)[:, :, None]
    across = np.sqrt(1 - tilt * tilt) * np.stack([-directions[:, :, 1], directions[:, :, 0]], 2)
    left, right = tilt * directions + across, tilt * directions - across
    old, new = radii_before[:, :, None], radii[:, :, None]
    corners = np.stack([before + old * left, joints + new * left, joints + new * right, before + old * right], 2)
    areas = (radii + radii_before) * lengths + math.pi * radii * radii
    return np.rint(corners * 2**SHIFT).astype(np.int32), areas
