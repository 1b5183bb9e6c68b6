"""Measurements of masks: hole pixels, hole ratio, ratio bucket, border contact.

A mask is uint8 [height, width] of {0, 1}: 1 = valid, 0 = hole.
"""

from __future__ import annotations

import cv2
import numpy as np

# The six intervals of the paper's test set, each (low, high]: low is excluded, high is included.
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
    """Index, 0 to 5, of the interval in ``RATIO_BUCKETS`` that contains ``ratio``; -1 if none does.

    The intervals are (low, high]: 0.1 is in bucket 0, the next larger number in bucket 1; 0.01 and less, more than 0.6,
    and NaN are in none. The bounds are the float64 numbers written in ``RATIO_BUCKETS``, so a ratio that was stored as
    float32 may have moved across one.
    """
    for bucket, (low, high) in enumerate(RATIO_BUCKETS):
        if low < ratio <= high:
            return bucket
    return -1


def border_margin(height: int, width: int) -> int:
    """Width in pixels of the region near the border: 50 at 512 x 512, scaled with the shorter side, at least 1."""
    return max(1, (50 * min(height, width) + 256) // 512)


def touches_border(mask: np.ndarray, margin: int) -> bool:
    """Whether any hole pixel is less than ``margin`` pixels away from the border.

    Pixels in the outermost rows and columns are 0 pixels away, so margin=1 tests only these, and margin=0 is always
    False.

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
    """Smallest and largest n with low < n / ``pixels`` <= high in float64; smallest > largest if there is no such n."""
    smallest, largest = int(low * pixels), int(high * pixels)
    # low * pixels may round to either side of an integer; hole_ratio divides, so division decides.
    while smallest / pixels > low:
        smallest -= 1
    while smallest / pixels <= low:
        smallest += 1
    while largest / pixels <= high:
        largest += 1
    while largest / pixels > high:
        largest -= 1
    return smallest, largest
