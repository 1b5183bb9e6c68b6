"""The ``blobs`` family: smooth noise below a threshold, which is chosen so that the hole ratio is met.

Random numbers on a lattice are smoothed by a cubic B-spline. The cell size of the lattice varies from mask to mask, so
some masks have few, large holes and others many, small ones.

All arithmetic is on integers, or additions, multiplications, divisions and square roots, which IEEE 754 rounds alike on
every machine; the upscaling is the one that OpenCV documents as bit-exact.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from masks.canvas import Canvas

# Sides of the lattice's cells as fractions of the canvas's side.
MIN_CELL, MAX_CELL = 1 / 28, 1 / 7
# The noise is computed on a canvas this many times smaller and scaled up; on small masks with at least MIN_SAMPLES.
REDUCTION, MIN_SAMPLES = 4, 64
# Weights of the B-spline are multiples of 1 / 1024: after two axes, sums of numbers up to 255 stay below 2^29.
ONE = 1024


def draw_blobs(rng: np.random.Generator, canvas: Canvas) -> None:
    """Draws blobs as holes.

    Args:
        rng: random generator; the only source of randomness.
        canvas: what to draw on.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    noise = _noise(rng, region.shape, target / region.size, canvas.border)
    noise = cv2.resize(noise, region.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    below = cv2.calcHist([noise], [0], None, [256], [0, 256]).ravel().astype(np.int64).cumsum()
    level = int(np.searchsorted(below, target))
    if level and below[level] > canvas.max_holes and below[level - 1] >= canvas.min_holes:
        level -= 1
    np.greater(noise, level, out=region.view(np.bool_))


def _noise(rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str) -> np.ndarray:
    """uint8 noise, 0 to 255, for a canvas of ``shape`` = (height, width), at a smaller size: to be scaled up.

    With ``none`` it is high along the sides of the canvas; with ``touch`` the lowest point of its lattice lies on one.
    """
    side = math.sqrt(shape[0] * shape[1])
    size, *phases = rng.random(3).tolist()
    cells = [length / (side * (MIN_CELL + (MAX_CELL - MIN_CELL) * size * size)) for length in shape]
    axis, far = divmod(int(rng.integers(4)), 2)
    if border == "touch":  # then a row or column of the lattice lies on that side
        phases[axis] = -cells[axis] % 1.0 if far else 0.0
    lattice = rng.integers(0, 256, [int(sum(pair)) + 4 for pair in zip(cells, phases, strict=True)], np.int32)
    if border == "touch":
        smooth = 4 * lattice + np.roll(lattice, 1, 0) + np.roll(lattice, -1, 0)
        smooth = 4 * smooth + np.roll(smooth, 1, 1) + np.roll(smooth, -1, 1)
        minimum = np.unravel_index(int(smooth.argmin()), lattice.shape)
        # Point 1 lies on or before the first pixel, and the third to last on the last pixel.
        place = [int(rng.integers(1, length - 2)) for length in lattice.shape]
        place[axis] = lattice.shape[axis] - 3 if far else 1
        lattice = np.roll(lattice, [int(to - at) for to, at in zip(place, minimum, strict=True)], (0, 1))

    counts = [max(min(length, MIN_SAMPLES), -(-length // REDUCTION)) for length in shape]
    noise = _smooth(_smooth(lattice.T, counts[1], cells[1], phases[1]).T, counts[0], cells[0], phases[0])
    if border == "none":
        rows, columns = (_rise(count, ratio) for count in counts)
        noise += rows[:, None] + columns
    lowest, highest = int(noise.min()), int(noise.max())
    return np.rint((noise - lowest) * (255 / max(1, highest - lowest))).astype(np.uint8)


def _smooth(lattice: np.ndarray, samples: int, cells: float, phase: float) -> np.ndarray:
    """``lattice`` smoothed along axis 0: int32 [samples, ...], ``ONE`` times as large.

    Samples are spaced evenly over the ``cells`` cells of a canvas that starts ``phase`` of a cell after point 1.
    """
    places = (np.arange(samples) + 0.5) * (cells / samples) + phase
    first = places.astype(np.int64)
    t = places - first
    u = 1 - t
    weights = np.stack([u * u * u, 4 - 3 * t * t * (1 + u), 4 - 3 * u * u * (1 + t), t * t * t])
    weights = np.rint(weights * (ONE / 6)).astype(np.int32)[:, :, None]
    smooth = weights[0] * lattice.take(first, 0)
    for k in (1, 2, 3):
        smooth += weights[k] * lattice.take(first + k, 0)
    return smooth


def _rise(samples: int, ratio: float) -> np.ndarray:
    """Offset to the noise along one axis: small except near the ends, where it exceeds all noise inside.

    The contours of the sum over two axes are rounded squares, the squarer the more of the canvas is to be covered.
    """
    rise = np.abs((2 * np.arange(samples) + 1) / samples - 1)
    for _ in range(3 + (ratio > 0.8) + (ratio > 0.9)):
        rise = rise * rise
    return np.rint(rise * (255 * ONE * ONE)).astype(np.int32)
