"""Augmentation of existing holes, as in the paper, with exactly the requested number of hole pixels.

Random rotation, flip, scale and crop, always with nearest-neighbor interpolation; then dilation (the authors' web page
says by 9 to 49 pixels at 512 x 512). Copies are added, or pieces removed, until a dilation of that width gives about
the requested number of holes; the exact number then comes from the width alone.

    holes -> rotate, scale, crop -> add copies until their dilation covers enough -> remove pieces -> dilate
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from masks.canvas import Canvas
from masks.exactness import resize_holes, without_ipp

# Radii of the dilation, in pixels at 512 x 512.
MIN_RADIUS, MAX_RADIUS = 4.5, 24.5
# Largest enlargement of the crop, as a power of 2; the smallest, 0, gives the result the area of the whole source.
MAX_ZOOM = 1.2
# Bounds the work; a wider dilation adds what is still missing after so many.
MAX_COPIES = 8


def augmented(rng: np.random.Generator, holes: np.ndarray, shape: tuple[int, int], touch: bool = False) -> np.ndarray:
    """``holes``, randomly flipped, rotated by any angle, enlarged and cropped.

    At least one hole pixel, if there is one, lands inside. The source is continued by reflection, so that no straight
    line shows where it ends.

    Args:
        rng: random generator; the only source of randomness.
        holes: uint8 [any height, any width] of {0, 1}, 0 = hole.
        shape: (height, width) of the result.
        touch: whether that hole pixel lands in an outermost row or column.

    Returns:
        uint8 [height, width] of {0, 1}.
    """
    (height, width), (rows, columns) = shape, holes.shape
    turn, zoom, pick, x, y, flip, side = rng.random(7).tolist()
    scale = math.sqrt(height * width / (rows * columns)) * 2 ** (MAX_ZOOM * zoom)
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
    """float64 [2, 3] for ``cv2.warpAffine``: ``turn`` (two rows of two) that takes ``point`` = (x, y) to ``land``.

    Computed in Python: the last bit of a library's matrix product differs between CPUs.
    """
    x, y = point
    return np.array([[a, b, to - (a * x + b * y)] for (a, b), to in zip(turn, land, strict=True)], np.float64)


@without_ipp()
def cover(rng: np.random.Generator, holes: np.ndarray, canvas: Canvas, tries: int = 1) -> None:
    """Draws augmented copies of ``holes``, with a random allowed number of hole pixels.

    Args:
        rng: random generator; the only source of randomness.
        holes: uint8 [any height, any width] of {0, 1}, 0 = hole.
        canvas: what to draw on; border ``touch`` becomes likely, no more.
        tries: augmentations to draw for each copy; the one whose dilation comes nearest to the target is kept.
    """
    region = canvas.region
    target = canvas.draw_target(rng)
    min_radius = MIN_RADIUS * min(canvas.mask_size) / 512
    radius = min_radius * (MAX_RADIUS / MIN_RADIUS) ** rng.random()
    # Room for the dilation, or a straight edge would show where the holes must end.
    inset = min(math.ceil(radius), min(region.shape) // 4) if canvas.border == "none" else 0
    inner = (slice(inset, region.shape[0] - inset), slice(inset, region.shape[1] - inset))

    best = region.copy()  # contiguous, which distance transforms need
    for copy in range(MAX_COPIES):
        drafts: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        for _ in range(tries):
            draft = best.copy()
            draft[inner] &= augmented(rng, holes, draft[inner].shape, canvas.border == "touch" and copy == 0)
            away = _distance(draft)
            missing = abs(int(np.count_nonzero(away <= radius)) - target)
            drafts.append((missing, len(drafts), draft, away))
        _, _, best, away = min(drafts)
        if np.count_nonzero(away <= radius) >= target:
            break
    near = away <= min_radius
    if np.count_nonzero(near) > target:
        _remove_pieces(rng, best, near, target)
    resize_holes(best, target, rng)
    region[:] = best


def _distance(mask: np.ndarray) -> np.ndarray:
    """float32 [height, width]: distance to the nearest hole in pixels; infinite if there is no hole."""
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    return cv2.distanceTransform(mask, cv2.DIST_L2, 5)


def _remove_pieces(rng: np.random.Generator, mask: np.ndarray, near: np.ndarray, target: int) -> None:
    """Makes holes of ``mask`` valid, in place, until their dilation ``near`` (bool) has about ``target`` pixels.

    Connected pieces are kept in random order; of the last one, only its end in a random direction.
    """
    number, labels, stats, _ = cv2.connectedComponentsWithStats(near.view(np.uint8))
    # Sorted in reading order: how OpenCV numbers them does not matter.
    pieces = 1 + np.lexsort(stats[1:, [cv2.CC_STAT_AREA, cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]].T)
    pieces = pieces[rng.permutation(number - 1)]
    ends = np.cumsum(stats[pieces, cv2.CC_STAT_AREA])
    last = int(np.searchsorted(ends, target))
    is_kept = np.zeros(number, bool)
    is_kept[pieces[: last + 1]] = True
    fraction = 1 - (ends[last] - target) / stats[pieces[last], cv2.CC_STAT_AREA]

    rows, columns = np.nonzero(mask == 0)
    labels = labels[rows, columns]
    valid = ~is_kept[labels]
    cut = np.flatnonzero(labels == pieces[last])
    angle = 2 * math.pi * rng.random()
    along = round(1024 * math.cos(angle)) * columns[cut] + round(1024 * math.sin(angle)) * rows[cut]
    # Integers without ties: the same pixels are removed, however this CPU sorts.
    order = along.astype(np.int64) * mask.size + cut
    kept = max(1, int(fraction * len(cut)))
    valid[cut] = order > np.partition(order, kept - 1)[kept - 1]
    mask[rows[valid], columns[valid]] = 1
