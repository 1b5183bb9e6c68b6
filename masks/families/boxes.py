"""The ``boxes`` family: random rectangles, upright on half of the masks and turned on the others.

Size and number follow the hole ratio. A box that would be too much is made smaller as a whole, so it stays a box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

from masks.coverage import count_holes

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Sides as shares of the canvas's when all of it is to be covered; else they follow the square root of the ratio.
SHORTEST, LONGEST = 0.1, 0.75
# tan(22.5 degrees): boxes turn by up to 45 degrees either way; further turns are those of boxes with sides exchanged.
LARGEST_TURN = math.sqrt(2) - 1
# Far above what ratios up to 0.9 take.
MAX_BOXES = 256
BATCH = 16
# A mask may have more holes than its target, by this part of the interval: many boxes then stay as they were drawn.
SLACK = 8
# The smallest step in size when a box is fitted: 1/1024.
HALVINGS = 10
# Corners are placed in 16ths of a pixel.
SHIFT = 4


def draw_boxes(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask of rectangles.

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
    before = mask.copy()
    for centre, corners in _boxes(rng, region.shape, target / region.size, spec.border):
        _paint(region, centre, corners)
        holes = count_holes(mask)
        if holes > most:
            size = 0.5
            for halving in range(2, HALVINGS + 2):
                np.copyto(mask, before)
                _paint(region, centre, np.rint(corners * size))
                holes = count_holes(mask)
                if target <= holes <= most:
                    return mask
                size += (1 if holes < target else -1) / 2**halving
        if holes >= target:
            break
        np.copyto(before, mask)
    return mask


def _paint(region: np.ndarray, centre: np.ndarray, corners: np.ndarray) -> None:
    cv2.fillConvexPoly(region, (centre + corners).astype(np.int32), 0, cv2.LINE_8, SHIFT)


def _boxes(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``MAX_BOXES`` random boxes for a canvas of ``shape`` = (height, width), ``ratio`` of which is to be covered.

    Each is its centre [2] and its corners [4, 2] seen from there, x before y, whole numbers of 16ths of a pixel. With
    ``none`` all lie inside the canvas; with ``touch`` the first reaches over one of its sides.

    Numbers are added, multiplied, divided and their roots taken, no more: IEEE 754 rounds these alike everywhere.
    """
    last = np.array([shape[1] - 1.0, shape[0] - 1.0])
    side = math.sqrt(shape[0] * shape[1] * ratio)
    turned = rng.random() < 0.5
    for first in range(0, MAX_BOXES, BATCH):
        numbers = rng.random((BATCH, 6))
        halves = side / 2 * (SHORTEST + (LONGEST - SHORTEST) * numbers[:, :2])
        # (1 - t^2, 2 t) / (1 + t^2) is the direction at an angle whose half has the tangent t.
        tangent = LARGEST_TURN * (2 * numbers[:, 2] - 1) if turned else np.zeros(BATCH)
        norm = 1 + tangent * tangent
        along = np.stack([1 - tangent * tangent, 2 * tangent], 1) * (halves[:, :1] / norm[:, None])
        across = np.stack([-2 * tangent, 1 - tangent * tangent], 1) * (halves[:, 1:] / norm[:, None])
        reach = np.abs(along) + np.abs(across)
        centres = last * numbers[:, 3:5]
        if border == "none":
            shrink = np.minimum(1, (last / (2 * reach)).min(1))[:, None]
            along, across, reach = along * shrink, across * shrink, reach * shrink
            # Pushed outwards, and held at the sides, the more of the canvas is to be covered.
            spread = np.clip((numbers[:, 3:5] - 0.5) * (1 + ratio * ratio) + 0.5, 0, 1)
            centres = reach + (last - 2 * reach) * spread
        elif border == "touch" and first == 0:
            axis, far = divmod(int(4 * numbers[0, 5]), 2)
            inside = numbers[0, 3 + axis] * reach[0, axis]
            centres[0, axis] = last[axis] - inside if far else inside
        corners = np.stack([along + across, along - across, -along - across, across - along], 1)
        yield from zip(np.rint(centres * 2**SHIFT), np.rint(corners * 2**SHIFT), strict=True)
