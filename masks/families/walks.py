"""The ``walks`` family: the area covered by round brushes on random walks.

Public code draws such masks pixel by pixel, with a single walk of as many steps as there are pixels, which covers a
fifth of them. Here several brushes walk at once, for more steps than needed. Each pixel records when it was first
covered; the mask is what was covered by the time at which the hole ratio is met.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from masks.canvas import Canvas

# Radii of the brush as fractions of the side.
MIN_RADIUS, MAX_RADIUS = 0.004, 0.015
# A brush of radius r moves up to r + 1 pixels along each axis per step, so the covered area is connected. Walks of 256
# to 4096 steps then cover 0.5 to 0.31 times (r + 1)^2 pixels per step (measured). SPARE times the predicted number of
# steps is walked at once; if that does not suffice, which is rare, as many again, in up to MAX_PARTS parts.
COVERED, SPARE, MAX_PARTS = 0.35, 2.0, 4
MIN_STEPS, MAX_STEPS = 64, 4096
# One to this many brushes; more only where each would need more than MAX_STEPS steps.
MAX_BRUSHES = 6
# With border none, walls reach this fraction of the side into the canvas, or, if nearly all of it is to be covered,
# this fraction of the rest.
WALL, WALL_OF_REST = 0.16, 0.3
# Times run from 1 to NEVER - 1; 0 marks what was covered in an earlier part.
NEVER = 255


def draw_walks(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws random walks as holes.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    side = math.sqrt(region.size)
    radius = round(side * (MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * rng.random()))
    radius = min(max(1, radius), (min(region.shape) - 1) // 4, 126)
    before = None
    for _ in range(MAX_PARTS):
        times = _times(
            rng, region.shape, target / region.size, radius, canvas.border, MAX_BRUSHES if before is None else 1
        )
        if before is not None:
            times[before < NEVER] = 0
        covered = cv2.calcHist([times], [0], None, [256], [0, 256]).ravel()[:NEVER].astype(np.int64).cumsum()
        if covered[-1] >= target:
            break
        before = times
    last = min(int(np.searchsorted(covered, target)), NEVER - 1)
    if last and covered[last] > canvas.max_holes and covered[last - 1] >= canvas.min_holes:
        last -= 1
    np.greater(times, last, out=region.view(np.bool_))


def _times(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float, radius: int, border: str, max_brushes: int
) -> np.ndarray:
    """Time at which each pixel was first covered, or ``NEVER``: uint8 of ``shape`` = (height, width).

    About ``SPARE`` times ``ratio`` of them are covered. With ``none`` the whole brush stays inside, else its center;
    with ``touch`` one brush starts on a side.
    """
    step = radius + 1
    # Overlapping brushes at random places cover the fraction r of a canvas if their areas add up to -log(1 - r) of it.
    # This rational approximation, 2.4 % less at r = 0.9, is one that IEEE 754 rounds alike on every machine.
    alone = ratio * (60 - ratio * (60 - ratio * 11)) / (60 - ratio * (90 - ratio * (36 - ratio * 3)))
    steps = MIN_STEPS + int(SPARE * alone * shape[0] * shape[1] / (COVERED * step * step))
    brushes = max(int(rng.integers(1, max_brushes + 1)), -(-steps // MAX_STEPS))
    steps = -(-steps // brushes)
    inset = radius if border == "none" else 0
    last = [length - 1 - 2 * inset for length in shape]

    # Centers, as rows and columns [steps, brushes].
    places = rng.integers(-step, step + 1, (2, steps, brushes), np.int8).cumsum(1, dtype=np.int32)
    starts = rng.random((2, brushes))
    axis, far = divmod(int(rng.integers(4)), 2)
    if border == "touch":
        starts[axis, 0] = far
        places[axis, :, 0] -= places[axis, 0, 0]
    for place, start, end in zip(places, starts, last, strict=True):
        place += np.minimum(start * (end + 1), end).astype(np.int32)
        _reflect(place, end)
    if border == "none":
        _keep_from_walls(rng, places, last, ratio)
    pixels = (places[0] + inset) * shape[1] + (places[1] + inset)

    times = np.full(shape, NEVER, np.uint8)
    # Backwards: of several values assigned to one pixel the last one stays, here that of the first visit.
    clock = np.repeat((1 + np.arange(steps) * (NEVER - 1) // steps).astype(np.uint8), brushes)
    times.ravel()[pixels.ravel()[::-1]] = clock[::-1]
    return cv2.erode(times, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))


def _reflect(places: np.ndarray, last: int | np.ndarray) -> None:
    """Reflects walks at 0 and ``last``, in place; the few that would go far beyond are clipped."""
    for _ in range(4):
        np.abs(places, out=places)
        np.subtract(last, places, out=places)
    np.clip(places, 0, last, out=places)


def _keep_from_walls(rng: np.random.Generator, places: np.ndarray, last: list[int], ratio: float) -> None:
    """Reflects walks, in place, at walls that are random walks themselves, so that no straight edge shows."""
    side = math.sqrt(last[0] * last[1])
    depth = min(int(side * min(WALL, WALL_OF_REST * (1 - ratio))), min(last) // 4)
    for axis in (0, 1):
        walls = rng.integers(-1, 2, (2, last[1 - axis] + 1), np.int8).cumsum(1, dtype=np.int32)
        walls += rng.integers(0, depth // 2 + 1, (2, 1), np.int32)
        _reflect(walls, depth // 2)
        # Slightly nearer or farther for each brush.
        own = rng.integers(0, depth - depth // 2 + 1, (2, 1, places.shape[2]), np.int32)
        low, high = walls.take(places[1 - axis], 1) + own
        places[axis] -= low
        _reflect(places[axis], last[axis] - high - low)
        places[axis] += low
