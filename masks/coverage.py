"""How much of a mask is hole: measuring it, and reaching it to the pixel.

A mask is uint8 [height, width] of {0, 1}: 1 = valid, 0 = hole. The first half of this module measures masks; the
second half holds the steps, shared by all families, that give a mask exactly the holes it was asked for. Each of them
is bounded: no step draws again until luck helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np

# The paper's six intervals of its test set, each (low, high]: low is outside, high is inside.
RATIO_BUCKETS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))


def _as_mask(mask: np.ndarray) -> np.ndarray:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.size == 0 or mask.dtype not in (np.uint8, np.bool_):
        received = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else repr(mask)
        raise ValueError(f"mask: expected a uint8 array [height, width] of 0 and 1. Received {received}.")
    return mask.view(np.uint8)


def count_holes(mask: np.ndarray) -> int:
    """Number of hole pixels (value 0) of a uint8 or bool mask [height, width]."""
    mask = _as_mask(mask)
    return mask.size - cv2.countNonZero(mask)


def hole_ratio(mask: np.ndarray) -> float:
    """Hole pixels over all pixels, in [0, 1], of a uint8 or bool mask [height, width].

    Raises:
        ValueError: not a two-dimensional, non-empty array of uint8 or bool.
    """
    return count_holes(mask) / mask.size


def bucket_of(ratio: float) -> int:
    """Number, 0 to 5, of the entry of ``RATIO_BUCKETS`` that holds ``ratio``; -1 when none does.

    The intervals are (low, high]: 0.1 is in bucket 0, the next larger number in bucket 1; 0.01 and everything below
    it, everything above 0.6, and NaN are in none. The bounds are the float64 numbers written in ``RATIO_BUCKETS``, so
    a ratio that has been through float32 may have moved across one.
    """
    for bucket, (low, high) in enumerate(RATIO_BUCKETS):
        if low < ratio <= high:
            return bucket
    return -1


def border_margin(height: int, width: int) -> int:
    """Pixels that count as near the border: 50 at 512 x 512, in proportion to the shorter side, 1 or more."""
    return max(1, (50 * min(height, width) + 256) // 512)


def touches_border(mask: np.ndarray, margin: int) -> bool:
    """Whether any hole pixel is less than ``margin`` pixels away from the border.

    Pixels of the outermost rows and columns are 0 pixels away. So margin=1 looks at these alone, and margin=0 at
    nothing: the answer is False.

    Raises:
        ValueError: ``margin`` is negative, or ``mask`` is not a two-dimensional array of uint8 or bool.
    """
    if margin < 0:
        raise ValueError(f"margin: expected 0 pixels or more. Received {margin!r}.")
    mask = _as_mask(mask)
    rows, columns = min(margin, mask.shape[0]), min(margin, mask.shape[1])
    if margin == 0:
        return False
    bands = (mask[:rows], mask[-rows:], mask[:, :columns], mask[:, -columns:])
    return any(cv2.countNonZero(band) < band.size for band in bands)


def pixel_interval(low: float, high: float, pixels: int) -> tuple[int, int]:
    """Fewest and most hole pixels n, of ``pixels``, with low < n / pixels <= high in float64; fewest > most: none."""
    fewest, most = int(low * pixels), int(high * pixels)
    # low * pixels may round to either side of a whole number; hole_ratio divides, so division decides.
    while fewest / pixels > low:
        fewest -= 1
    while fewest / pixels <= low:
        fewest += 1
    while most / pixels <= high:
        most += 1
    while most / pixels > high:
        most -= 1
    return fewest, most


class Mark(NamedTuple):
    """One shape to draw as a hole: ``draw(mask, *args)`` paints it with 0.

    Attributes:
        draw: paints on a uint8 [height, width] canvas, in place.
        args: its arguments after the canvas.
        area: about how many pixels it covers; decides how often pixels are counted, not which are drawn.
        anchor: (x, y) of the pixel that stays when the shape is cut short.
    """

    draw: Callable
    args: tuple
    area: float
    anchor: tuple[int, int]


def paint_until(mask: np.ndarray, marks: Iterable[Mark], target: int, most: int) -> None:
    """Paints marks on an all-valid mask, in place, until ``target`` to ``most`` of its pixels are holes.

    The mark that would exceed ``most`` is cut short: of the pixels it adds, those nearest to its anchor stay, as many
    as make exactly ``target``. All other marks are whole. When the marks run out, fewer pixels are holes.
    """
    marks = iter(marks)
    before, holes = mask.copy(), 0
    one_by_one = False
    while holes < target:
        # Counting costs more than a small shape: paint as many as are expected to fill the gap, then count.
        gap = (target - holes) * mask.size / (mask.size - holes)
        batch: list[Mark] = []
        while gap > 0 and (mark := next(marks, None)) is not None:
            mark.draw(mask, *mark.args)
            batch.append(mark)
            gap = 0 if one_by_one else gap - mark.area
        if not batch:
            return
        count = count_holes(mask)
        if count > most:
            if len(batch) == 1:
                _cut_short(mask, before, batch[0].anchor, count - target)
                return
            np.copyto(mask, before)
            marks, one_by_one = chain(batch, marks), True
        else:
            np.copyto(before, mask)
            holes = count


def _cut_short(mask: np.ndarray, before: np.ndarray, anchor: tuple[int, int], excess: int) -> None:
    """Makes the ``excess`` hole pixels valid again that are not in ``before`` and farthest from ``anchor``."""
    pixels = np.flatnonzero(mask != before)
    rows, columns = np.divmod(pixels, mask.shape[1])
    # Whole numbers without ties: the same pixels go, whichever way this processor sorts.
    order = ((columns - anchor[0]) ** 2 + (rows - anchor[1]) ** 2) * mask.size + pixels
    keep = len(order) - excess
    gone = order > np.partition(order, keep - 1)[keep - 1]
    mask[rows[gone], columns[gone]] = 1


def resize_holes(mask: np.ndarray, target: int, rng: np.random.Generator) -> None:
    """Dilates or erodes the holes, in place, until exactly ``target`` pixels, 0 to all, are holes.

    Pixels change in the order of their distance to the other kind, so the outline moves evenly. A mask that is all
    valid or all hole grows from one random pixel.
    """
    holes = count_holes(mask)
    if holes == target:
        return
    if holes in (0, mask.size):
        row, column = divmod(int(rng.integers(mask.size)), mask.shape[1])
        mask[row, column] ^= 1
        holes = count_holes(mask)
    # Of the pixels that may change (not 0), those nearest to a 0 change first.
    source = np.ascontiguousarray(mask) if holes < target else 1 - mask
    distance = cv2.distanceTransform(source, cv2.DIST_L2, 5)
    pixels = np.flatnonzero(source)
    order = (distance.ravel()[pixels] * 65536).astype(np.int64) * mask.size + pixels
    changes = abs(target - holes)
    if changes:
        chosen = pixels[order <= np.partition(order, changes - 1)[changes - 1]]
        mask[np.divmod(chosen, mask.shape[1])] ^= 1


def shift_to_border(mask: np.ndarray) -> None:
    """Moves all holes together, in place, straight to the nearest side of the mask; their number stays."""
    height, width = mask.shape
    x, y, w, h = cv2.boundingRect(1 - mask)
    if w == 0:
        raise ValueError("mask: expected one or more hole pixels. Received none.")
    moves = [(-x, 0), (0, -y), (width - x - w, 0), (0, height - y - h)]
    dx, dy = min(moves, key=lambda move: abs(move[0] + move[1]))
    holes = mask[y : y + h, x : x + w].copy()
    mask[:] = 1
    mask[y + dy : y + dy + h, x + dx : x + dx + w] = holes
