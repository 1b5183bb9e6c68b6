"""Masks made of stored ones while training: turned, mirrored, moved, enlarged, with larger holes.

All of it rearranges or spreads pixels, none mixes them: a mask stays binary. What is drawn follows from numbers that
the caller gives, who makes them from (seed, example number).

Flips and quarter turns keep every pixel, and so the hole ratio and whether holes touch the border. The others do not,
which is why they are off unless asked for: afterwards a record's ``mask/hole_ratio`` no longer describes the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from trainer.config import DataConfig

DRAWS = 7  # numbers that one mask takes


def dilate_holes(mask: np.ndarray, radius: int) -> np.ndarray:
    """Makes a hole of every pixel with a hole within ``radius`` pixels of it in both directions (a square).

    Args:
        mask: uint8 [H, W]; 0 = hole. What lies outside is no hole.
        radius: 0 or more.
    """
    return cv2.erode(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) if radius else mask


def cut(mask: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of ``side`` pixels at (top, left), enlarged to the size of the mask by nearest neighbour.

    Args:
        mask: uint8 [S, S] of {0, 1}.
        top, left: the square may reach beyond the mask, where all is valid.
        side: 1 .. S; S: moved, not enlarged.
    """
    size = len(mask)
    offset = (2 * np.arange(size) + 1) * side // (2 * size)  # the source pixel under each centre
    rows, columns = top + offset, left + offset
    found = mask[np.ix_(rows.clip(0, size - 1), columns.clip(0, size - 1))]
    found[(rows < 0) | (rows >= size)] = 1
    found[:, (columns < 0) | (columns >= size)] = 1
    return found


def pick(draw: float, count: int) -> int:
    """One of 0 .. count - 1, by a number in [0, 1)."""
    return min(int(draw * count), count - 1)


def augment_mask(mask: np.ndarray, draws: Sequence[float], config: DataConfig) -> np.ndarray:
    """A mask as the config's ``mask_*`` values let it vary.

    Args:
        mask: uint8 [S, S] of {0, 1}; 0 = hole.
        draws: `DRAWS` numbers, uniform in [0, 1).

    Returns:
        uint8 [S, S] of {0, 1}; it may be a view of ``mask``.
    """
    a, b, c, scale, y, x, spread = draws
    size = len(mask)
    if config.mask_dilate:
        mask = dilate_holes(mask, pick(spread, config.mask_dilate + 1))
    if config.mask_crop < 1 or config.mask_shift:
        smallest = max(int(size * config.mask_crop), 1)
        side = smallest + pick(scale, size - smallest + 1)
        shift = int(size * config.mask_shift)
        room = size - side + 2 * shift + 1
        mask = cut(mask, pick(y, room) - shift, pick(x, room) - shift, side)
    # The eight symmetries of the square are the combinations of three flips. A quarter turn one way or the other is a
    # transposition and one flip, half a turn is both flips.
    transposed = config.mask_turn and c < 0.5
    if config.mask_flip:
        upside_down, mirrored = a < 0.5, b < 0.5
    else:
        upside_down = config.mask_turn and a < 0.5
        mirrored = upside_down ^ transposed
    if upside_down:
        mask = mask[::-1]
    if mirrored:
        mask = mask[:, ::-1]
    return mask.T if transposed else mask
