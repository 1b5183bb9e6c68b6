"""Steps, shared by all families, that give a mask exactly the requested number of hole pixels.

A mask is uint8 [height, width] of {0, 1}: 1 = valid, 0 = hole. Each step takes bounded time: none retries at random.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np

from masks.coverage import count_holes


@contextlib.contextmanager
def without_ipp() -> Iterator[None]:
    """Disables Intel's IPP in this thread: its resized floats and distances differ from OpenCV's own in a few bits.

    Machines with and without it then draw equal masks. OpenCV keeps this switch per thread.
    """
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        yield
    finally:
        cv2.ipp.setUseIPP(used)


class Mark(NamedTuple):
    """One shape to draw as a hole: ``draw(mask, *args)`` paints it with 0.

    Attributes:
        draw: paints on a uint8 [height, width] canvas, in place.
        args: its arguments after the canvas.
        area: approximate number of pixels it covers; affects how often pixels are counted, not which are drawn.
        anchor: (x, y) of the pixel around which the shape is cut short.
    """

    draw: Callable
    args: tuple
    area: float
    anchor: tuple[int, int]


def paint_until(mask: np.ndarray, marks: Iterable[Mark], target: int, max_holes: int) -> None:
    """Paints marks on an all-valid mask, in place, until ``target`` to ``max_holes`` of its pixels are holes.

    The mark that would exceed ``max_holes`` is cut short: of the pixels it adds, those nearest to its anchor are kept,
    just enough for exactly ``target``. All other marks stay whole. If the marks run out, fewer pixels are holes.
    """
    marks = iter(marks)
    before, holes = mask.copy(), 0
    one_by_one = False
    while holes < target:
        # Counting costs more than drawing a small shape: paint as many as should fill the gap, then count.
        gap = (target - holes) * mask.size / (mask.size - holes)
        batch: list[Mark] = []
        while gap > 0 and (mark := next(marks, None)) is not None:
            mark.draw(mask, *mark.args)
            batch.append(mark)
            gap = 0 if one_by_one else gap - mark.area
        if not batch:
            return
        count = count_holes(mask)
        if count > max_holes:
            if len(batch) == 1:
                _cut_short(mask, before, batch[0].anchor, count - target)
                return
            np.copyto(mask, before)
            marks, one_by_one = chain(batch, marks), True
        else:
            np.copyto(before, mask)
            holes = count


def _cut_short(mask: np.ndarray, before: np.ndarray, anchor: tuple[int, int], excess: int) -> None:
    """Makes valid again the ``excess`` hole pixels that are not in ``before`` and farthest from ``anchor``."""
    pixels = np.flatnonzero(mask != before)
    rows, columns = np.divmod(pixels, mask.shape[1])
    # Integers without ties: the same pixels are removed, however this CPU sorts.
    order = ((columns - anchor[0]) ** 2 + (rows - anchor[1]) ** 2) * mask.size + pixels
    keep = len(order) - excess
    removed = order > np.partition(order, keep - 1)[keep - 1]
    mask[rows[removed], columns[removed]] = 1


@without_ipp()
def resize_holes(mask: np.ndarray, target: int, rng: np.random.Generator) -> None:
    """Dilates or erodes the holes, in place, until exactly ``target`` pixels, 0 to all, are holes.

    Pixels change in the order of their distance to the other kind, so the outline moves evenly. A mask that is all
    valid or all hole changes around one random pixel.
    """
    holes = count_holes(mask)
    if holes == target:
        return
    if holes in (0, mask.size):
        row, column = divmod(int(rng.integers(mask.size)), mask.shape[1])
        mask[row, column] ^= 1
        holes = count_holes(mask)
    # Pixels that may change are not 0 here; those nearest to a 0 change first.
    source = np.ascontiguousarray(mask) if holes < target else 1 - mask
    distance = cv2.distanceTransform(source, cv2.DIST_L2, 5)
    pixels = np.flatnonzero(source)
    order = (distance.ravel()[pixels] * 65536).astype(np.int64) * mask.size + pixels
    changes = abs(target - holes)
    if changes:
        chosen = pixels[order <= np.partition(order, changes - 1)[changes - 1]]
        mask[np.divmod(chosen, mask.shape[1])] ^= 1


def shift_to_border(mask: np.ndarray) -> None:
    """Moves all holes together, in place, straight to the nearest side of the mask; their number does not change."""
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(1 - mask)
    if w == 0:
        raise ValueError("mask: expected one or more hole pixels to move to the border.")
    moves = [(-x, 0), (0, -y), (width - x - w, 0), (0, height - y - h)]
    dx, dy = min(moves, key=lambda move: abs(move[0] + move[1]))
    holes = mask[y : y + h, x : x + w].copy()
    mask[:] = 1
    mask[y + dy : y + dy + h, x + dx : x + dx + w] = holes
