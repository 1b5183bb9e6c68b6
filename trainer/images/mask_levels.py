"""What a mask's gray values say: which of them are white and which black, read from the values that are there.

Masks of others are black and white in many ways: labels 0 and 1, 255 in a file of 16 bits, a color painted on black,
soft edges. What counts is what an image holds, not how bright it would be on a screen. What could be meant in two ways
is refused, with the option that says which.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from trainer.errors import MaskError

_DEPTHS = (1023, 4095, 16_383)  # white of 10, 12 and 14 bits
_FEW = 16  # levels; so few are no soft edge and no noise of a lossy format
_NOISE = 32  # part of the range that such noise takes at either end
_FLAT = 0.25  # share of the pixels between black and white that lie in plateaus, from which they are labels
_SQUARE = np.ones((3, 3), np.uint8)


class Split(NamedTuple):
    """Which pixels are white, bool [height, width], and in a few words how that was read."""

    white: np.ndarray
    read_as: str


def split_gray(
    gray: np.ndarray, full: int, is_lossy: bool = False, threshold: float = 0.5, by_threshold: bool = False
) -> Split:
    """Black and white of gray values.

    Two values are black and white, whatever they are. Of more, those from the middle of the range on are white if the
    values lie on both sides of it and those between black and white are edges. If all lie on one side, they are two
    levels with soft edges, or labels, of which 0 is black and all others are white.

    Args:
        gray: uint8 or uint16 [height, width].
        full: the value of white, 255 or 65535.
        is_lossy: whether the file's format changes values a little.
        threshold: fraction of the range from which a value is white, where there are more than two.
        by_threshold: whether that decides alone, whatever the values are.

    Raises:
        MaskError: the values can be meant in more than one way.
    """
    if full == 255 and not by_threshold and not ((gray + np.uint8(1)) & np.uint8(254)).any():  # 0 and 255 alone
        white = gray == 255
        is_one = white.all() or not white.any()
        return Split(white, f"all {'white' if white[0, 0] else 'black'}" if is_one else "black and white")
    levels = np.flatnonzero(cv2.calcHist([gray], [0], None, [1 << 8 * gray.itemsize], [0, 1 << 8 * gray.itemsize]))
    low, high = int(levels[0]), int(levels[-1])
    middle = math.ceil(threshold * full)
    if by_threshold:
        return Split(gray >= middle, f"white from {middle} of {full} on")
    if low == high:
        return _split_uniform(gray, low, full, is_lossy)
    if len(levels) == 2 and not is_lossy:
        plain = (low, high) == (0, full)
        return Split(gray == high, "black and white" if plain else f"two gray levels, {low} and {high}")
    is_both_sides = low < middle <= high
    if is_both_sides and _has_labels(gray, levels, is_lossy):
        raise _labels_or_gray(levels, full)
    if is_both_sides:
        return Split(gray >= middle, f"white from {middle} of {full} on")
    range_held = 255 if high <= 255 else high if high in _DEPTHS else full
    if range_held < full:  # of 8 bits, or of a camera's, in 16
        narrow = gray.astype(np.uint8) if range_held == 255 else gray
        return split_gray(narrow, range_held, is_lossy, threshold)
    return _split_one_side(gray, levels, full, is_lossy, threshold)


def _split_uniform(gray: np.ndarray, level: int, full: int, is_lossy: bool) -> Split:
    noise = full // _NOISE
    if level == 0 or (is_lossy and level <= noise):
        return Split(np.zeros(gray.shape, bool), "all black")
    if level >= full - noise:
        return Split(np.ones(gray.shape, bool), "all white")
    raise MaskError(
        f"expected black and white. Received one gray level, {level} of {full}: --hole-label, in place of --hole, says "
        "which labels are holes, or --threshold from which fraction of the range gray is white."
    )


def _split_one_side(gray: np.ndarray, levels: np.ndarray, full: int, is_lossy: bool, threshold: float) -> Split:
    """Three or more levels that are all dark, or all light."""
    low, high = int(levels[0]), int(levels[-1])
    middle = low + math.ceil(threshold * (high - low))
    if is_lossy:
        quarter = (high - low) // 4
        between = np.count_nonzero((gray > low + quarter) & (gray < high - quarter))
        if high - low > full // 8 and between < 0.05 * gray.size:
            return Split(gray >= middle, f"two gray levels, about {low} and {high}")
    elif _has_labels(gray, levels, is_lossy):
        if low == 0:
            return Split(gray > 0, f"{len(levels) - 1} labels beside 0")
    elif _is_plateau(gray, low) and _is_plateau(gray, high):
        return Split(gray >= middle, f"two gray levels with soft edges, {low} and {high}")
    raise _labels_or_gray(levels, full)


def _labels_or_gray(levels: np.ndarray, full: int) -> MaskError:
    middle = math.ceil(50 * (int(levels[0]) + int(levels[-1])) / full) / 100
    split = f", --threshold {middle} splits them" if middle >= 0.02 else ""
    shown = [str(level) for level in levels if level] if len(levels) <= _FEW else []
    example = ",".join(shown) or f"1-{levels[-1]}"
    return MaskError(
        f"expected black and white. Received {_describe(levels)} of {full}, which may be labels: --hole-label "
        f"{example}, in place of --hole, makes these holes{split}."
    )


def _describe(levels: np.ndarray) -> str:
    if len(levels) > 6:
        return f"{len(levels)} gray levels from {levels[0]} to {levels[-1]}"
    return f"gray levels {', '.join(map(str, levels[:-1]))} and {levels[-1]}"


# Edges and plateaus


def _flat(pixels: np.ndarray) -> np.ndarray:
    """Pixels whose eight neighbors have their value: bool [height, width]."""
    same = np.ones(pixels.shape[:2], bool)
    for channel in cv2.split(pixels):
        same &= cv2.erode(channel, _SQUARE) == cv2.dilate(channel, _SQUARE)
    return same


def is_flat(pixels: np.ndarray, where: np.ndarray) -> bool:
    """Whether a good part of the pixels ``where``, bool [height, width], lies in areas of one value or color."""
    return bool(np.count_nonzero(_flat(pixels) & where) > _FLAT * np.count_nonzero(where))


def _is_plateau(gray: np.ndarray, level: int) -> bool:
    return bool((_flat(gray) & (gray == level)).any())


def _has_labels(gray: np.ndarray, levels: np.ndarray, is_lossy: bool) -> bool:
    """Whether values between the lowest and the highest fill areas, as labels do and edges do not.

    Wide soft edges have areas of one value too, but nearly all the values between black and white.
    """
    if levels[-1] > 255:
        surplus = int(levels[-1]).bit_length() - 8
        gray, levels = (gray >> surplus).astype(np.uint8), np.unique(levels >> surplus)
    low, high = int(levels[0]), int(levels[-1])
    noise = (high - low) // _NOISE
    first = low + (noise if is_lossy or len(levels) > _FEW else 0)  # small labels are near black, too
    inner = (gray > first) & (gray < high - noise)
    if len(levels) > _FEW and 2 * len(levels) > high - low:
        return False
    return is_flat(gray, inner)


def is_label_map(entries: np.ndarray) -> bool:
    """Whether uint8 [height, width] has a background, 0, and areas of other values."""
    labeled = entries > 0
    return not labeled.all() and is_flat(entries, labeled)
