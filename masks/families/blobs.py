"""The ``blobs`` family: smooth noise below a level, which is chosen so that the hole ratio is met.

Random numbers on a lattice are smoothed by a cubic B-spline. The lattice's cells differ in size from mask to mask, so
holes are few and large on some, many and small on others.

Numbers are whole, or come from adding, multiplying, dividing and square roots, which IEEE 754 rounds alike everywhere;
the scaling up is the one that OpenCV documents as bit-exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Sides of the lattice's cells as shares of the canvas's side.
SMALLEST, LARGEST = 1 / 28, 1 / 7
# The noise is computed on a canvas this many times smaller and scaled up; on small masks less, from FEWEST_SAMPLES.
REDUCTION, FEWEST_SAMPLES = 4, 64
# Weights of the B-spline are multiples of 1 / 1024: after two axes, sums of numbers up to 255 stay below 2^29.
ONE = 1024


def draw_blobs(rng: np.random.Generator, spec: MaskSpec) -> np.ndarray:
    """One mask of blobs.

    Args:
        rng: the only source of chance.
        spec: size, interval of hole pixels and border rule.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    mask = np.ones((spec.height, spec.width), np.uint8)
    region = spec.region(mask)
    target = spec.draw_target(rng)
    noise = _noise(rng, region.shape, target / region.size, spec.border)
    noise = cv2.resize(noise, region.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    below = cv2.calcHist([noise], [0], None, [256], [0, 256]).ravel().astype(np.int64).cumsum()
    level = int(np.searchsorted(below, target))
    if level and below[level] > spec.most_holes and below[level - 1] >= spec.fewest_holes:
        level -= 1
    np.greater(noise, level, out=region.view(np.bool_))
    return mask


def _noise(rng: np.random.Generator, shape: tuple[int, int], ratio: float, border: str) -> np.ndarray:
    """uint8 noise, 0 to 255, for a canvas of ``shape`` = (height, width), and smaller than that: to be scaled up.

    With ``none`` it is high along the sides of the canvas; with ``touch`` the lowest point of
    its lattice lies on one of them.
    """
    side = math.sqrt(shape[0] * shape[1])
    size, *phases = rng.random(3).tolist()
    cells = [length / (side * (SMALLEST + (LARGEST - SMALLEST) * size * size)) for length in shape]
    axis, far = divmod(int(rng.integers(4)), 2)
    if border == "touch":  # a row or column of the lattice lies on the side
        phases[axis] = -cells[axis] % 1.0 if far else 0.0
    lattice = rng.integers(0, 256, [int(sum(pair)) + 4 for pair in zip(cells, phases, strict=True)], np.int32)
    if border == "touch":
        smooth = 4 * lattice + np.roll(lattice, 1, 0) + np.roll(lattice, -1, 0)
        smooth = 4 * smooth + np.roll(smooth, 1, 1) + np.roll(smooth, -1, 1)
        lowest = np.unravel_index(int(smooth.argmin()), lattice.shape)
        # Number 1 lies on the first pixel, or before it, and the last but two on the last.
        place = [int(rng.integers(1, length - 2)) for length in lattice.shape]
        place[axis] = lattice.shape[axis] - 3 if far else 1
        lattice = np.roll(lattice, [int(to - at) for to, at in zip(place, lowest, strict=True)], (0, 1))

    counts = [max(min(length, FEWEST_SAMPLES), -(-length // REDUCTION)) for length in shape]
    noise = _smooth(_smooth(lattice.T, counts[1], cells[1], phases[1]).T, counts[0], cells[0], phases[0])
    if border == "none":
        rows, columns = (_rise(count, ratio) for count in counts)
        noise += rows[:, None] + columns
    lowest, highest = int(noise.min()), int(noise.max())
    return np.rint((noise - lowest) * (255 / max(1, highest - lowest))).astype(np.uint8)


def _smooth(lattice: np.ndarray, samples: int, cells: float, phase: float) -> np.ndarray:
    """Axis 0 of int32 ``lattice`` smoothed: int32 [samples, ...], ``ONE`` times as large.

    Samples lie evenly on the ``cells`` cells of a canvas that begins ``phase`` of a cell behind point number 1.
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
    """What is added to noise on the samples of one axis: little but near its ends, where noise then exceeds all other.

    The sum of two axes has rounded squares for its contours, the squarer the more of the canvas is to be covered.
    """
    rise = np.abs((2 * np.arange(samples) + 1) / samples - 1)
    for _ in range(3 + (ratio > 0.8) + (ratio > 0.9)):
        rise = rise * rise
    return np.rint(rise * (255 * ONE * ONE)).astype(np.int32)
