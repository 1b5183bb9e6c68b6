"""The ``boxes`` family: random rectangles, upright on half of the masks and rotated on the others.

Size and number follow from the hole ratio. A box that would exceed it is scaled down as a whole, so it stays a box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from masks.canvas import Canvas
from masks.coverage import count_holes

# Sides as fractions of the canvas's side at hole ratio 1; they scale with the square root of the ratio.
MIN_SIDE, MAX_SIDE = 0.1, 0.75
# tan(22.5 degrees): boxes rotate by up to 45 degrees either way; more would give boxes with their sides exchanged.
MAX_TURN = math.sqrt(2) - 1
# Far more than ratios up to 0.9 need.
MAX_BOXES = 256
BATCH = 16
# A mask may exceed its target by 1/SLACK of the interval, so that many last boxes keep their size.
SLACK = 8
# Bisection steps when a box is scaled to fit: down to 1/1024 of its size.
HALVINGS = 10
# Corners are placed in 16ths of a pixel.
SHIFT = 4


def draw_boxes(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws rectangles as holes.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    max_holes = min(canvas.max_holes, target + (canvas.max_holes - canvas.min_holes) // SLACK)
    before = region.copy()
    for center, corners in _boxes(rng, region.shape, target / region.size, canvas.border):
        _paint(region, center, corners)
        holes = count_holes(region)
        if holes > max_holes:
            size = 0.5
            for halving in range(2, HALVINGS + 2):
                np.copyto(region, before)
                _paint(region, center, np.rint(corners * size))
                holes = count_holes(region)
                if target <= holes <= max_holes:
                    return
                size += (1 if holes < target else -1) / 2**halving
        if holes >= target:
            break
        np.copyto(before, region)


def _paint(region: np.ndarray, center: np.ndarray, corners: np.ndarray) -> None:
    cv2.fillConvexPoly(region, (center + corners).astype(np.int32), 0, cv2.LINE_8, SHIFT)


def _boxes(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``MAX_BOXES`` random boxes for a canvas of ``shape`` = (height, width), to cover the fraction ``ratio`` of it.

    Each is its center [2] and its corners [4, 2] relative to it, as (x, y) in whole 16ths of a pixel. With ``none`` all
    lie inside the canvas; with ``touch`` the first extends over one of its sides.

    Additions, multiplications, divisions and square roots only: IEEE 754 rounds these alike on every machine.
    """
    last = np.array([shape[1] - 1.0, shape[0] - 1.0])
    side = math.sqrt(shape[0] * shape[1] * ratio)
    turned = rng.random() < 0.5
    for first in range(0, MAX_BOXES, BATCH):
        numbers = rng.random((BATCH, 6))
        halves = side / 2 * (MIN_SIDE + (MAX_SIDE - MIN_SIDE) * numbers[:, :2])
        # (1 - t^2, 2 t) / (1 + t^2) is the direction at an angle whose half has the tangent t.
        tangent = MAX_TURN * (2 * numbers[:, 2] - 1) if turned else np.zeros(BATCH)
        norm = 1 + tangent * tangent
        along = np.stack([1 - tangent * tangent, 2 * tangent], 1) * (halves[:, :1] / norm[:, None])
        across = np.stack([-2 * tangent, 1 - tangent * tangent], 1) * (halves[:, 1:] / norm[:, None])
        reach = np.abs(along) + np.abs(across)
        centers = last * numbers[:, 3:5]
        if border == "none":
            shrink = np.minimum(1, (last / (2 * reach)).min(1))[:, None]
            along, across, reach = along * shrink, across * shrink, reach * shrink
            # The more is to be covered, the more are pushed outwards, up to the sides.
            spread = np.clip((numbers[:, 3:5] - 0.5) * (1 + ratio * ratio) + 0.5, 0, 1)
            centers = reach + (last - 2 * reach) * spread
        elif border == "touch" and first == 0:
            axis, far = divmod(int(4 * numbers[0, 5]), 2)
            inside = numbers[0, 3 + axis] * reach[0, axis]
            centers[0, axis] = last[axis] - inside if far else inside
        corners = np.stack([along + across, along - across, -along - across, across - along], 1)
        yield from zip(np.rint(centers * 2**SHIFT), np.rint(corners * 2**SHIFT), strict=True)
