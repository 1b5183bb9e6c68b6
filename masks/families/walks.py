"""The ``walks`` family: what round brushes cover that walk at random.

Public code draws such masks pixel after pixel, with one walk as long as there are pixels, which covers a fifth of them.
Here several brushes walk at once, more steps than it takes: each pixel learns when it was first covered, and the time
is chosen so that the hole ratio is met.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Radii of the brush as shares of the side.
THINNEST, THICKEST = 0.004, 0.015
# A brush of radius r goes up to r + 1 pixels along each axis at a step, so what it covers hangs together. Walks of 256
# to 4096 steps then cover 0.5 to 0.31 times (r + 1)^2 pixels a step (measured). SPARE times as many steps as that
# takes are walked at once; where they do not suffice, which is rare, as many again, up to PARTS times.
COVERED, SPARE, PARTS = 0.35, 2.0, 4
FEWEST_STEPS, MOST_STEPS = 64, 4096
# Brushes when few steps are enough: up to this number.
FEW = 6
# With border none, walls reach this share of the side into the canvas, or, where nearly all of it is to be covered,
# this share of what remains.
WALL, WALL_OF_REST = 0.16, 0.3
# Times are counted from 1 to NEVER - 1; 0 is what was covered in an earlier part.
NEVER = 255


def draw_walks(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask of random walks.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels and border rule.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    mask = np.ones((spec.height, spec.width), np.uint8)
    region = spec.region(mask)
    target = spec.draw_target(rng)
    side = math.sqrt(region.size)
    radius = round(side * (THINNEST + (THICKEST - THINNEST) * rng.random()))
    radius = min(max(1, radius), (min(region.shape) - 1) // 4, 126)
    before = None
    for _ in range(PARTS):
        times = _times(rng, region.shape, target / region.size, radius, spec.border, FEW if before is None else 1)
        if before is not None:
            times[before < NEVER] = 0
        covered = cv2.calcHist([times], [0], None, [256], [0, 256]).ravel()[:NEVER].astype(np.int64).cumsum()
        if covered[-1] >= target:
            break
        before = times
    last = min(int(np.searchsorted(covered, target)), NEVER - 1)
    if last and covered[last] > spec.most_holes and covered[last - 1] >= spec.fewest_holes:
        last -= 1
    np.greater(times, last, out=region.view(np.bool_))
    return mask


def _times(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, radius: int, border: str, few: int
) -> np.ndarray:
    """uint8 of ``shape`` = (height, width): when each pixel was first covered, ``NEVER`` or before.

    About ``SPARE`` times ``ratio`` of them are covered. With ``none`` brushes stay inside as a whole, else their
    centres do; with ``touch`` one starts on a side.
    """
    step = radius + 1
    # Places at random cover the share r of a canvas when what they cover alone is -log(1 - r); this is 2.4 % less at
    # r = 0.9 and a fraction, which IEEE 754 rounds alike everywhere.
    alone = ratio * (60 - ratio * (60 - ratio * 11)) / (60 - ratio * (90 - ratio * (36 - ratio * 3)))
    steps = FEWEST_STEPS + int(SPARE * alone * shape[0] * shape[1] / (COVERED * step * step))
    brushes = max(int(rng.integers(1, few + 1)), -(-steps // MOST_STEPS))
    steps = -(-steps // brushes)
    inset = radius if border == "none" else 0
    last = [length - 1 - 2 * inset for length in shape]

    # Centres, as rows and columns [steps, brushes].
    places = rng.integers(-step, step + 1, (2, steps, brushes), np.int8).cumsum(1, dtype=np.int32)
    starts = rng.random((2, brushes))
    axis, far = divmod(int(rng.integers(4)), 2)
    if border == "touch":
        starts[axis, 0] = far
        places[axis, :, 0] -= places[axis, 0, 0]
    for place, start, most in zip(places, starts, last, strict=True):
        place += np.minimum(start * (most + 1), most).astype(np.int32)
        _reflect(place, most)
    if border == "none":
        _keep_from_walls(rng, places, last, ratio)
    pixels = (places[0] + inset) * shape[1] + (places[1] + inset)

    times = np.full(shape, NEVER, np.uint8)
    # Backwards: of several values for one pixel the last one stays, and that is the first visit.
    clock = np.repeat((1 + np.arange(steps) * (NEVER - 1) // steps).astype(np.uint8), brushes)
    times.ravel()[pixels.ravel()[::-1]] = clock[::-1]
    return cv2.erode(times, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))


def _reflect(places: np.ndarray, last: int | np.ndarray) -> None:
    """Walks that come to 0 or ``last`` turn back, in place; the few that would go far beyond are held there."""
    for _ in range(4):
        np.abs(places, out=places)
        np.subtract(last, places, out=places)
    np.clip(places, 0, last, out=places)


def _keep_from_walls(rng: np.random.Generator, places: np.ndarray, last: list[int], ratio: float) -> None:
    """Reflects walks inside a canvas, in place, at walls that wander like the walks: no straight edge shows."""
    side = math.sqrt(last[0] * last[1])
    depth = min(int(side * min(WALL, WALL_OF_REST * (1 - ratio))), min(last) // 4)
    for axis in (0, 1):
        walls = rng.integers(-1, 2, (2, last[1 - axis] + 1), np.int8).cumsum(1, dtype=np.int32)
        walls += rng.integers(0, depth // 2 + 1, (2, 1), np.int32)
        _reflect(walls, depth // 2)
        # To each brush they are a little nearer or farther.
        own = rng.integers(0, depth - depth // 2 + 1, (2, 1, places.shape[2]), np.int32)
        low, high = walls.take(places[1 - axis], 1) + own
        places[axis] -= low
        _reflect(places[axis], last[axis] - high - low)
        places[axis] += low
