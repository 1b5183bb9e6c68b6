"""What a mask's colors and its alpha channel say: which pixels are white and which black, see `mask_levels`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from trainer.errors import MaskError
from trainer.images.mask_levels import Split, is_flat
from trainer.images.rgb import BLOCK

_HALF = 128  # from which a luminance is bright
_NEAR = 40  # difference in a channel within which a color is that of a soft edge
_APART = 48  # difference in a channel from which two colors are two
_OUTSIDE = 0.002  # share of pixels off the line between two colors, where a lossy format has put them
_MANY = 64  # colors, from which a lossy format has made them
_DARK, _LIGHT = 32, 223  # what passes for black and white as one of two colors
_SAME = 0.8  # share of a shape in which two ways to read it agree, but for its edges
_LUMINANCE = (0.299, 0.587, 0.114)
Color = tuple[int, int, int]


def split_color(color: np.ndarray, is_lossy: bool = False) -> Split:
    """Black and white of colors that are not all gray.

    Of two colors the brighter is white if one is bright and one dark. Otherwise one of them is to be black or white,
    and the other, a paint, is its opposite. Both may have soft edges. More colors on black, or on white, are labels,
    and all of them paint.

    Args:
        color: uint8 [height, width, 3], RGB.
        is_lossy: whether the file's format changes values a little.

    Raises:
        MaskError: the colors can be meant in more than one way.
    """
    values = _used_colors(color)
    colors = [(value >> 16, value >> 8 & 255, value & 255) for value in values[:4].tolist()]
    if len(values) == 1:
        raise _ambiguous("one color, " + name_color(colors[0]), colors)
    if len(values) == 2 and not is_lossy:
        return Split(_is(color, _white_of(*colors)), f"two colors, {' and '.join(map(name_color, colors))}")
    is_noisy = is_lossy or len(values) > _MANY  # or was, in another format
    if found := _split_pair(color, is_noisy):
        return found
    count = f"{len(values)} colors"
    if not is_lossy:
        is_black, is_white = _is(color, (0, 0, 0)), _is(color, (255, 255, 255))
        if is_flat(color, ~(is_black | is_white)):
            if is_black.any() and not is_white.any():
                return Split(~is_black, f"{len(values) - 1} colors on black")
            if is_white.any() and not is_black.any():
                return Split(is_white, f"{len(values) - 1} colors on white")
        elif len(values) > len(colors):
            count += ", as of a photograph"
    raise _ambiguous(count, colors if len(values) <= len(colors) else [(255, 0, 0)])


def _used_colors(color: np.ndarray) -> np.ndarray:
    """All colors that there are, in order, as numbers 0xRRGGBB."""
    used = np.zeros(1 << 24, bool)
    for rows in _blocks(color):
        used[color[rows].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)] = True
    return np.flatnonzero(used)


def _blocks(color: np.ndarray) -> Iterator[slice]:
    """Rows that are looked at together: what is computed of all pixels at once takes many times their memory."""
    step = max(BLOCK // color.shape[1], 1)
    return (slice(top, top + step) for top in range(0, color.shape[0], step))


def _is(color: np.ndarray, wanted: Color) -> np.ndarray:
    return np.asarray((color == np.array(wanted, np.uint8)).all(axis=2))


def name_color(color: Iterable[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)


def _ambiguous(found: str, colors: Iterable[Color]) -> MaskError:
    names = " or ".join(name_color(color) for color in colors)
    return MaskError(
        f"expected black and white. Received {found}: --hole-label with a color ({names}), in place of --hole, says "
        "which one marks holes."
    )


def _luminance(color: Color) -> float:
    return sum(part * weight for part, weight in zip(color, _LUMINANCE, strict=True))


def _white_of(first: Color, second: Color) -> Color:
    """Which of two colors is white."""
    dark, bright = sorted((first, second), key=_luminance)
    if _luminance(dark) < _HALF <= _luminance(bright):
        return bright
    for is_end in (lambda c: max(c) == 0, lambda c: max(c) <= _DARK):
        if is_end(first) != is_end(second):
            return second if is_end(first) else first
    for is_end in (lambda c: min(c) == 255, lambda c: min(c) >= _LIGHT):
        if is_end(first) != is_end(second):
            return first if is_end(first) else second
    raise _ambiguous(f"two colors, {name_color(first)} and {name_color(second)}", (first, second))


def _split_pair(color: np.ndarray, is_noisy: bool) -> Split | None:
    """The two colors that a mask consists of, all else being edges between them; None if there are others."""
    pair = _find_pair(color)
    if pair is None:
        return None
    first, second = pair
    way = np.subtract(second, first, dtype=np.float32)
    is_second, is_inner, outside = np.empty(color.shape[:2], bool), np.empty(color.shape[:2], bool), 0
    for rows in _blocks(color):
        offset = color[rows].astype(np.float32) - np.array(first, np.float32)
        part = offset @ way / np.float32(way @ way)
        is_second[rows], is_inner[rows] = part >= 0.5, (part > 0.1) & (part < 0.9)
        off_line = np.abs(offset - np.clip(part, 0, 1)[..., None] * way).max(axis=2) > _NEAR
        outside += np.count_nonzero(off_line)
    if outside > (_OUTSIDE * is_inner.size if is_noisy else 0):
        return None
    if not is_noisy and is_flat(color, is_inner):
        return None  # a third color, which happens to lie between the two
    white = _white_of(first, second)
    read_as = f"about two colors, {name_color(first)} and {name_color(second)}"
    if min(map(_luminance, pair)) < _HALF <= _luminance(white):
        return Split(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY) >= _HALF, read_as)
    return Split(is_second if white == second else ~is_second, read_as)


def _find_pair(color: np.ndarray) -> tuple[Color, Color] | None:
    """The most frequent color, roughly, and the most frequent of those that are far from it."""
    coarse: np.ndarray = np.zeros(color.shape[:2], np.uint16)
    for channel in range(3):
        coarse = coarse << 4 | color[..., channel] >> 4

    def most(mask: np.ndarray | None) -> Color:
        level = int(cv2.calcHist([coarse], [0], mask, [1 << 12], [0, 1 << 12]).argmax())
        where = (coarse == level).view(np.uint8)
        red, green, blue, _ = cv2.mean(color, where if mask is None else where & mask)
        return round(red), round(green), round(blue)

    first, away = most(None), np.zeros(color.shape[:2], np.uint8)
    for channel in range(3):
        away |= (np.abs(color[..., channel].astype(np.int16) - first[channel]) >= _APART).view(np.uint8)
    return (first, most(away)) if away.any() else None


# Alpha


def is_constant(color: np.ndarray, where: np.ndarray, is_lossy: bool) -> bool:
    """Whether pixels of uint8 [height, width, channels] have one color; True if there are none."""
    seen = color[where]
    return not len(seen) or int((seen.max(axis=0).astype(int) - seen.min(axis=0)).max()) <= (_DARK if is_lossy else 16)


def is_same_split(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two ways to read a mask mark the same shape, or one what the other leaves, but for edges."""

    def agree(one: np.ndarray, other: np.ndarray) -> bool:
        return bool(np.count_nonzero(one & other) >= _SAME * np.count_nonzero(one | other))

    return any(agree(first, other) and agree(~first, ~other) for other in (second, ~second))
