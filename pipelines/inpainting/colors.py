"""Holes that a color marks in an image, and what is left around them where it was blurred by a lossy format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

_REACH = 8  # pixels from a hole: a block of JPEG
_CORE = 8  # difference that JPEG makes within an area of one color
_SPAN, _MOST = 8, 96  # a gap is looked for in steps of so many levels, up to so many
_SHARE = 0.05  # of the hole, from which a ring is told; a good tolerance leaves up to 0.03


@dataclass(frozen=True, kw_only=True)
class HoleColor:
    """Pixels that are holes: within ``tolerance`` of ``rgb`` in every channel, both in 0 to 255."""

    rgb: tuple[int, int, int]
    tolerance: int = 0


class Ring(NamedTuple):
    """Pixels near a color, such as #ff00ff, that surround what was found of it, and the tolerance that takes them."""

    color: str
    pixels: int
    tolerance: int


def find_color(pixels: np.ndarray, holes: HoleColor) -> np.ndarray:
    """bool [height, width] of uint8 or uint16 [height, width, channels]; alpha is not looked at."""
    scale = np.iinfo(pixels.dtype).max // 255
    is_hole = np.ones(pixels.shape[:2], bool)
    for channel, value in enumerate(holes.rgb):
        found = pixels[..., channel if pixels.shape[2] >= 3 else 0]
        low, high = (max(0, value - holes.tolerance) * scale, min(255, value + holes.tolerance) * scale)
        is_hole &= (found >= low) & (found <= high)
    return is_hole


def find_ring(pixels: np.ndarray, holes: HoleColor) -> Ring | None:
    """The ring of near colors around the holes of a color; None if there is none.

    Lossy formats change a painted color, most of all along its edge, and soft brushes blend it with the image: what
    is left there is the frame of a hole that the network would go on from. The tolerance is where the differences to
    the color have a gap between those of the paint and those of the image.

    Args:
        pixels: uint8 or uint16 [height, width, channels].
        holes: what was looked for.
    """
    away = _difference(pixels, holes.rgb)
    counts = np.cumsum(cv2.calcHist([away], [0], None, [256], [0, 256]).astype(np.int64))
    first = max(holes.tolerance + 1, _CORE)
    if first > _MOST:
        return None
    steps = np.arange(first, _MOST + 1)
    tolerance = int(steps[np.argmin(counts[steps + _SPAN] - counts[steps])])
    found = away <= holes.tolerance
    seeds = found if found.any() else away <= _CORE
    if not seeds.any():
        return None
    reach = cv2.dilate(seeds.astype(np.uint8), np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8))
    ring = int(np.count_nonzero((reach > 0) & ~found & (away <= tolerance)))
    return Ring(f"#{bytes(holes.rgb).hex()}", ring, tolerance) if ring > _SHARE * np.count_nonzero(found) else None


def warn_of_rings(rings: tuple[int, Ring] | None) -> list[str]:
    """What a job says of the rings of all its images: nothing, or one line.

    Args:
        rings: how many there are, and one with the color and the largest tolerance of all; None if there are none.
    """
    if rings is None:
        return []
    count, (color, _, tolerance) = rings
    return [
        f"{count} image{'' if count == 1 else 's'}: pixels near {color} surround the holes that were found, as JPEG "
        f"and soft brushes leave them: --holes color={color},{tolerance} takes most of them, --grow 2 what is left"
    ]


def _difference(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The largest difference in any channel, of 8 bits: uint8 [height, width]."""
    away = np.zeros(pixels.shape[:2], np.uint8)
    for channel, value in enumerate(color):
        found = pixels[..., channel if pixels.shape[2] >= 3 else 0]
        found = found if found.dtype == np.uint8 else (found >> 8).astype(np.uint8)
        away = np.maximum(away, np.where(found > value, found - np.uint8(value), np.uint8(value) - found))
    return away
