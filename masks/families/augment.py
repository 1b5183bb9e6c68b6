"""Many masks from the holes of one: the paper's augmentation, then exactly the holes that are asked for.

Random turn, flip, scale and crop, always with the nearest neighbour; then dilation (the authors' pages say by 9 to 49
pixels at 512 x 512). More copies join, or parts are left out, until a dilation of that width gives about the number of
holes, so that the width alone makes it exact.

    holes -> turned, scaled, cropped -> copies join until their dilation covers enough -> parts leave -> dilation
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from masks.exactness import resize_holes, without_ipp

if TYPE_CHECKING:
    from masks.sampling import MaskSpec

# Half the widths that the holes are dilated by, in pixels at 512 x 512.
SMALLEST_RADIUS, LARGEST_RADIUS = 4.5, 24.5
# Largest enlargement of what is cropped, as a power of 2; the smallest is that of equal areas, 0.
LARGEST_ZOOM = 1.2
# Bounds the work; what these leave missing, a wider dilation adds.
MAX_COPIES = 8


def augmented(rng: np.random.Generator, holes: np.ndarray, shape: tuple[int, int], touch: bool = False) -> np.ndarray:
    """``holes`` flipped, turned by any angle, enlarged and cropped at random.

    One hole pixel, if there is any, lands inside. Beyond its edges the mask continues mirrored, so that no straight
    line shows where it ends.

    Args:
        rng: the only source of chance.
        holes: uint8 [any height, any width] of {0, 1}, 0 = hole.
        shape: (height, width) of the result.
        touch: whether that hole pixel lands on the outermost pixels.

    Returns:
        uint8 [height, width] of {0, 1}.
    """
    (height, width), (rows, columns) = shape, holes.shape
    turn, zoom, pick, x, y, flip, side = rng.random(7).tolist()
    scale = math.sqrt(height * width / (rows * columns)) * 2 ** (LARGEST_ZOOM * zoom)
    along, across = scale * math.cos(2 * math.pi * turn), scale * math.sin(2 * math.pi * turn)
    mirror = -1 if flip < 0.5 else 1
    pixels = np.flatnonzero(holes == 0)
    row, column = divmod(int(pixels[int(pick * len(pixels))]), columns) if len(pixels) else (rows // 2, columns // 2)
    land = [int(x * width), int(y * height)]
    if touch:
        land[int(side * 4) % 2] = (0, 0, width - 1, height - 1)[int(side * 4)]
    matrix = affine(((along, -across * mirror), (across, along * mirror)), (column, row), land)
    return cv2.warpAffine(
        np.ascontiguousarray(holes), matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
    )


def affine(turn: Sequence[Sequence[float]], point: Sequence[float], land: Sequence[float]) -> np.ndarray:
    """float64 [2, 3] for ``cv2.warpAffine``: ``turn`` (two rows of two) about ``point`` = (x, y), moved to ``land``.

    In Python's arithmetic: the matrix products of libraries differ in the last bit from CPU to CPU.
    """
    x, y = point
    return np.array([[a, b, to - (a * x + b * y)] for (a, b), to in zip(turn, land, strict=True)], np.float64)


@without_ipp()
def cover(rng: np.random.Generator, holes: np.ndarray, spec: MaskSpec, tries: int = 1) -> np.ndarray:
    """One mask of augmented copies of ``holes``, with a random number of hole pixels that ``spec`` allows.

    Args:
        rng: the only source of chance.
        holes: uint8 [any height, any width] of {0, 1}, 0 = hole.
        spec: size, interval of hole pixels and border rule; ``touch`` is made likely, no more.
        tries: for each copy, augmentations of which the one stays whose dilation comes nearest to what is missing.

    Returns:
        uint8 [height, width] of {0, 1}, 0 = hole.
    """
    mask = np.ones((spec.height, spec.width), np.uint8)
    region = spec.region(mask)
    target = spec.draw_target(rng)
    thinnest = SMALLEST_RADIUS * min(spec.height, spec.width) / 512
    radius = thinnest * (LARGEST_RADIUS / SMALLEST_RADIUS) ** rng.random()
    # Room for the dilation, or a straight edge would show where the holes must end.
    inset = min(math.ceil(radius), min(region.shape) // 4) if spec.border == "none" else 0
    inner = (slice(inset, region.shape[0] - inset), slice(inset, region.shape[1] - inset))

    canvas = np.ones(region.shape, np.uint8)
    for copy in range(MAX_COPIES):
        drafts = []
        for _ in range(tries):
            draft = canvas.copy()
            draft[inner] &= augmented(rng, holes, draft[inner].shape, spec.border == "touch" and copy == 0)
            away = _distance(draft)
            drafts.append((abs(np.count_nonzero(away <= radius) - target), len(drafts), draft, away))
        _, _, canvas, away = min(drafts)
        if np.count_nonzero(away <= radius) >= target:
            break
    near = away <= thinnest
    if np.count_nonzero(near) > target:
        _leave_out(rng, canvas, near, target)
    resize_holes(canvas, target, rng)
    region[:] = canvas
    return mask


def _distance(mask: np.ndarray) -> np.ndarray:
    """float32 [height, width], in pixels to the nearest hole; infinite where there is none."""
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform(mask, cv2.DIST_L2, 5)


def _leave_out(rng: np.random.Generator, mask: np.ndarray, near: np.ndarray, target: int) -> None:
    """Makes holes of ``mask`` valid, in place, until their dilation ``near`` (bool) has about ``target`` pixels.

    Connected pieces stay in random order; of the last only its end in a random direction.
    """
    number, labels, stats, _ = cv2.connectedComponentsWithStats(near.view(np.uint8))
    # In reading order, whichever way they were numbered.
    pieces = 1 + np.lexsort(stats[1:, [cv2.CC_STAT_AREA, cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]].T)
    pieces = pieces[rng.permutation(number - 1)]
    ends = np.cumsum(stats[pieces, cv2.CC_STAT_AREA])
    last = int(np.searchsorted(ends, target))
    stay = np.zeros(number, bool)
    stay[pieces[: last + 1]] = True
    share = 1 - (ends[last] - target) / stats[pieces[last], cv2.CC_STAT_AREA]

    rows, columns = np.nonzero(mask == 0)
    labels = labels[rows, columns]
    valid = ~stay[labels]
    cut = np.flatnonzero(labels == pieces[last])
    angle = 2 * math.pi * rng.random()
    along = round(1024 * math.cos(angle)) * columns[cut] + round(1024 * math.sin(angle)) * rows[cut]
    # Whole numbers without ties: the same pixels go, whichever way this processor sorts.
    order = along.astype(np.int64) * mask.size + cut
    kept = max(1, int(share * len(cut)))
    valid[cut] = order > np.partition(order, kept - 1)[kept - 1]
    mask[rows[valid], columns[valid]] = 1
