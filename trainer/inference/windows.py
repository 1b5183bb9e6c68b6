"""Windows around the holes of large images, and how overlapping ones are blended.

    |<---------------------- size ---------------------->|
    | margin |<------------- support ---------->| margin |      one axis of a window; its output is used in the support
                                      |<overlap>|
                                      |<------------- support ---------->|     the next one

Holes close to one another form a group. A group whose bounding box fits into a support gets a single window, as small
as its context allows. A larger group gets a grid of windows; where two overlap, their weights change linearly from one
to the other and sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

_CELL = 16  # pixels; holes are grouped at this resolution
_NEIGHBORS = 64  # windows that a group is compared with before it gets its own


class Box(NamedTuple):
    """Rows top to bottom and columns left to right of an image, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def union(self, other: Box) -> Box:
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How images are cut into windows.

    Attributes:
        size: longest side in pixels of a window; smaller images are not cut.
        margin: context in pixels around the part of a window that is used; an eighth of the size by default.
        overlap: of neighboring supports, in pixels; an eighth of the size by default.
    """

    size: int = 1024
    margin: int = -1
    overlap: int = -1

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"size: expected 8 or more. Received {self.size}.")
        for name in ("margin", "overlap"):
            if getattr(self, name) < 0:
                object.__setattr__(self, name, self.size // 8)
        if self.overlap < 1 or self.support < 3 * self.overlap:  # if three overlapped, weights would not sum to 1
            raise ValueError(
                f"expected size - 2 margin to be 3 overlap or more, and overlap 1 or more. Received size={self.size}, "
                f"margin={self.margin}, overlap={self.overlap}."
            )

    @property
    def support(self) -> int:
        return self.size - 2 * self.margin


class Span(NamedTuple):
    """One axis of a window: it reads [start, stop) and is used in [first, last) with weights float32 in (0, 1]."""

    start: int
    stop: int
    first: int
    last: int
    weights: np.ndarray


@dataclass(frozen=True)
class Group:
    """Holes that are filled together.

    Attributes:
        box: bounds of the holes.
        rows, columns: spans whose products are the windows.
    """

    box: Box
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def is_single(self) -> bool:
        return len(self.rows) == len(self.columns) == 1


def fit_side(length: int, sides: tuple[int, ...], stride: int) -> int:
    """The smallest of ``sides`` not less than ``length``; if there is none, the next multiple of ``stride``."""
    return min((side for side in sides if side >= length), default=-(-length // stride) * stride)


def make_sides(stride: int, *others: int, largest: int) -> tuple[int, ...]:
    """Sides that windows are padded to: 1, 2, 3, 4, 6, 8, 12, 16 ... strides up to ``largest``, and ``others``."""
    sides, step = {*others, -(-largest // stride) * stride}, 1
    while step * stride < largest:
        sides |= {step * stride, step * stride * 3 // 2} if step > 1 else {stride}
        step *= 2
    return tuple(sorted(side for side in sides if side % stride == 0))


def _read_around(first: int, last: int, length: int, wanted: int, margin: int) -> tuple[int, int]:
    """Start and stop of ``wanted`` pixels around [first, last) inside the image; the margin has priority."""
    begin, end = max(first - margin, 0), min(last + margin, length)
    start = max(0, min(begin, begin + (end - begin - wanted) // 2))
    stop = min(length, max(start + wanted, end))
    return max(0, min(start, stop - wanted)), stop


def _needed(first: int, last: int, length: int, tiling: Tiling) -> int:
    """Pixels that [first, last) of an axis and its context take."""
    return min(last + tiling.margin, length) - max(first - tiling.margin, 0)


def span_axis(first: int, last: int, length: int, tiling: Tiling, sides: tuple[int, ...], stride: int) -> list[Span]:
    """Spans that cover [first, last) of an axis of ``length`` pixels: a single one if it fits, else equal ones."""
    needed = _needed(first, last, length, tiling)
    if needed <= tiling.size:
        side = min(fit_side(needed, sides, stride), tiling.size)
        return [Span(*_read_around(first, last, length, side, tiling.margin), first, last, _ones(last - first))]
    support, overlap, extent = tiling.support, tiling.overlap, last - first
    count = max(2, -(-(extent - overlap) // (support - overlap)))
    starts = [first + round(k * (extent - support) / (count - 1)) for k in range(count)]
    # Each hands over to the next in the middle of their overlap.
    turns = [(starts[k + 1] + starts[k] + support - overlap) // 2 for k in range(count - 1)]
    firsts, lasts = [first, *turns], [*(at + overlap for at in turns), last]
    rise = (np.arange(overlap, dtype=np.float32) + 0.5) / np.float32(overlap)
    spans = []
    for k in range(count):
        weights = _ones(lasts[k] - firsts[k])
        if k > 0:
            weights[:overlap] *= rise
        if k < count - 1:
            weights[-overlap:] *= 1 - rise
        start = max(0, min(starts[k] - tiling.margin, length - tiling.size))
        spans.append(Span(start, min(length, start + tiling.size), firsts[k], lasts[k], weights))
    return spans


def _ones(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


def make_group(box: Box, shape: tuple[int, int], tiling: Tiling, sides: tuple[int, ...] = (), stride: int = 1) -> Group:
    """The windows that fill ``box`` of an image of ``shape``."""
    rows = span_axis(box.top, box.bottom, shape[0], tiling, sides, stride)
    columns = span_axis(box.left, box.right, shape[1], tiling, sides, stride)
    return Group(box, tuple(rows), tuple(columns))


def _hole_boxes(mask: np.ndarray, reach: int) -> list[Box]:
    """Bounding box, rounded to cells, of each set of holes less than ``reach`` pixels apart; in reading order."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % _CELL), (0, -width % _CELL)), constant_values=1)
    rows, columns = padded.shape[0] // _CELL, padded.shape[1] // _CELL
    cells = (padded.reshape(rows, _CELL, columns, _CELL).min((1, 3)) == 0).astype(np.uint8)
    cells_apart = max(1, reach // _CELL)
    near = cv2.dilate(cells, np.ones((cells_apart, cells_apart), np.uint8))
    count, labels = cv2.connectedComponents(near, connectivity=8)
    if count == 1:
        return []
    y, x = np.nonzero(cells)
    label = labels[y, x].astype(np.intp)
    top, left = np.full(count, rows), np.full(count, columns)
    bottom, right = np.zeros(count, int), np.zeros(count, int)
    np.minimum.at(top, label, y)
    np.minimum.at(left, label, x)
    np.maximum.at(bottom, label, y + 1)
    np.maximum.at(right, label, x + 1)
    bounds = (np.stack([top, left, bottom, right], 1)[1:] * _CELL).tolist()
    return [Box(t, le, min(b, height), min(r, width)) for t, le, b, r in sorted(bounds) if b > t]


def plan_groups(mask: np.ndarray, tiling: Tiling, sides: tuple[int, ...] = (), stride: int = 1) -> list[Group]:
    """Groups that together cover every hole of a mask; empty if there are no holes.

    Groups are merged where one window for both has no more pixels than one for each.

    Args:
        mask: uint8 [height, width] of {0, 1}, 0 = hole.
        sides: that windows are padded to, see `make_sides`.
        stride: of the network, in pixels.
    """

    def cost(group: Group) -> int:
        sizes = ((fit_side(s.stop - s.start, sides, stride) for s in spans) for spans in (group.rows, group.columns))
        rows, columns = map(sum, sizes)
        return rows * columns

    def fits(box: Box) -> bool:
        axes = zip(box[:2], box[2:], mask.shape, strict=True)
        return all(_needed(first, last, length, tiling) <= tiling.size for first, last, length in axes)

    groups: list[tuple[int, Group]] = []
    for box in _hole_boxes(mask, tiling.margin):
        new = make_group(box, mask.shape, tiling, sides, stride)
        price = cost(new)
        for k in range(len(groups) - 1, max(-1, len(groups) - 1 - _NEIGHBORS), -1):
            paid, old = groups[k]
            if not (new.is_single and old.is_single):
                continue
            both = old.box.union(box)
            if not fits(both):  # of thousands of holes, most are far apart
                continue
            joined = make_group(both, mask.shape, tiling, sides, stride)
            if cost(joined) <= paid + price:
                groups[k] = (cost(joined), joined)
                break
        else:
            groups.append((price, new))
    return [group for _, group in groups]
