"""Fills the holes of images of any size, depth and number of channels, window by window.

An image up to `Tiling.size` is one window. Of a larger image only windows around its holes are computed (see
`windows`). If a hole is larger than a window, its interior is first filled at half scale, which may in turn need
windows and a fill at quarter scale; at full scale the network then sees one pixel in four of that fill as valid
and fills the pixels between them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from trainer.inference.windows import Box, Group, Span, Tiling, fit_side, plan_groups

_STRIP = 256  # rows halved at a time; bounds memory without changing the result
_TYPICAL = 512 * 512  # pixels per window that a batch size refers to


@dataclass(frozen=True)
class Model:
    """A network that is ready to be called, and how it wants its windows.

    Attributes:
        predict: image float32 [B, H, W, 3] in [0, 1] and mask float32 [B, H, W, 1] to output float32
            [B, H, W, 3]; H and W multiples of ``stride``.
        stride: in pixels.
        sides: heights and widths that windows are padded to; if empty, the next multiple of ``stride``.
        batch_size: windows of 512 x 512 per batch, fewer if larger; batches are padded to it, so that there are few
            shapes. None: all windows of one shape in one batch, without padding.
        tiling: how large images are cut.
    """

    predict: Callable
    stride: int
    sides: tuple[int, ...] = ()
    batch_size: int | None = None
    tiling: Tiling = Tiling()

    def fit(self, length: int) -> int:
        return fit_side(length, self.sides, self.stride)


class NotFinite(ValueError):
    """A network's output has values that are not finite."""


def run_windows(model: Model, windows: Iterable[tuple[Hashable, np.ndarray, np.ndarray]]) -> Iterator:
    """Runs the network on windows, batch by batch; yields (key, output float32 [height, width, 3] in [0, 1]).

    Windows of one padded shape are yielded in the order in which they arrive. Padding counts as hole.

    Args:
        windows: (key, image, mask) each; image float32 [height, width, 3] in [0, 1], 0 in holes; mask float32
            [height, width, 1].
    """
    waiting: dict[tuple[int, int], list] = {}
    for window in windows:
        height, width = window[2].shape[:2]
        shape = model.fit(height), model.fit(width)
        together = waiting.setdefault(shape, [])
        together.append(window)
        limit = _batch_limit(model, shape)
        if limit is not None and len(together) == limit:
            yield from _run_batch(model, shape, waiting.pop(shape))
    for shape, together in waiting.items():
        yield from _run_batch(model, shape, together)


def _batch_limit(model: Model, shape: tuple[int, int]) -> int | None:
    return model.batch_size and min(model.batch_size, max(1, model.batch_size * _TYPICAL // (shape[0] * shape[1])))


def _run_batch(model: Model, shape: tuple[int, int], members: list) -> Iterator:
    count = _batch_limit(model, shape) or len(members)
    image, mask = (np.zeros((count, *shape, channels), np.float32) for channels in (3, 1))
    for i, (_, part, valid) in enumerate(members):
        height, width = valid.shape[:2]
        image[i, :height, :width], mask[i, :height, :width] = part, valid
    output = np.asarray(model.predict(image, mask))
    for (key, _, valid), found in zip(members, output, strict=False):
        height, width = valid.shape[:2]
        used = found[:height, :width]
        if wrong := used.size - np.count_nonzero(np.isfinite(used)):
            raise NotFinite(f"the network's output: expected finite numbers. Received {wrong} that are not.")
        yield key, np.clip(used, 0, 1)


# Between pixels and what the network sees


def _to_network(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 [height, width, 3] in [0, 1], 0 in holes, and mask float32 [height, width, 1]."""
    colors = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=2)
    valid = mask[..., None].astype(np.float32)
    return colors.astype(np.float32) / np.iinfo(pixels.dtype).max * valid, valid


def _store(pixels: np.ndarray, mask: np.ndarray, output: np.ndarray) -> None:
    """Writes the network's colors into the holes of ``pixels``, not into alpha. Gray is luminance (ITU-R BT.601)."""
    hole = mask == 0
    colors = output[hole]
    if pixels.shape[2] < 3:
        colors = colors @ np.array([[0.299], [0.587], [0.114]], np.float32)
    found = np.rint(colors * np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    for channel in range(found.shape[1]):
        pixels[..., channel][hole] = found[:, channel]


# Images


def fill_images(images: list[np.ndarray], masks: list[np.ndarray], model: Model) -> list[int]:
    """Fills the holes of images in place; images of a single window share batches.

    Args:
        images: uint8 or uint16 [height, width, 1 to 4] each.
        masks: uint8 [height, width] of {0, 1} each, 1 = valid.

    Returns:
        number of windows computed for each; 0 for images without holes.
    """
    counts = [0] * len(images)
    has_hole = [not mask.all() for mask in masks]
    small = [i for i, mask in enumerate(masks) if has_hole[i] and max(mask.shape) <= model.tiling.size]
    for i, output in run_windows(model, ((i, *_to_network(images[i], masks[i])) for i in small)):
        _store(images[i], masks[i], output)
        counts[i] = 1
    for i, mask in enumerate(masks):
        if has_hole[i] and max(mask.shape) > model.tiling.size:
            groups = plan_groups(mask, model.tiling, model.sides, model.stride)
            counts[i] = fill_groups(images[i], mask, groups, model)
    return counts


def fill_groups(
    pixels: np.ndarray, mask: np.ndarray, groups: list[Group], model: Model, skip_holeless: bool = True
) -> int:
    """Fills the holes in the boxes of ``groups`` in place; returns the number of windows.

    Args:
        skip_holeless: skip windows without holes, which change no pixel.
    """
    # Pixels in holes are never read, so results may be written where later windows overlap.
    singles = [group for group in groups if group.is_single]
    read = ((group, *_read_window(pixels, mask, group.rows[0], group.columns[0])) for group in singles)
    for group, output in run_windows(model, read):
        row, column = group.rows[0], group.columns[0]
        _store(pixels[group.box.slices], mask[group.box.slices], output[_used(row), _used(column)])
    count = len(singles)
    for group in groups:
        if not group.is_single:
            count += _fill_grid(pixels, mask, group, model, skip_holeless)
    return count


def _used(span: Span) -> slice:
    return slice(span.first - span.start, span.last - span.start)


def _read_window(pixels: np.ndarray, mask: np.ndarray, row: Span, column: Span) -> tuple[np.ndarray, np.ndarray]:
    at = slice(row.start, row.stop), slice(column.start, column.stop)
    return _to_network(pixels[at], mask[at])


def _fill_grid(pixels: np.ndarray, mask: np.ndarray, group: Group, model: Model, skip_holeless: bool) -> int:
    """Fills a group of several windows, one strip of the grid at a time; returns the number of windows."""
    guide, count = _make_guide(pixels, mask, group.box, model)

    def windows():
        nonlocal count
        for row in group.rows:
            for column in group.columns:
                if skip_holeless and mask[row.first : row.last, column.first : column.last].all():
                    continue
                count += 1
                image, valid = _read_window(pixels, mask, row, column)
                if guide is not None:
                    guide.add(image, valid, row.start, column.start)
                yield (row, column), image, valid

    top, left, _, right = group.box
    strip = np.zeros((max(row.last - row.first for row in group.rows), right - left, 3), np.float32)

    def finish(to: int) -> None:
        """Stores the rows above ``to``, which no later window adds to."""
        nonlocal top
        rows = min(to - top, len(strip))
        at = slice(top, top + rows), slice(left, right)
        _store(pixels[at], mask[at], strip[:rows])
        strip[: len(strip) - rows] = strip[rows:].copy()
        strip[len(strip) - rows :] = 0
        top = to

    for (row, column), output in run_windows(model, windows()):
        if row.first > top:
            finish(row.first)
        weights = row.weights[:, None, None] * column.weights[:, None]
        across = slice(column.first - left, column.last - left)
        strip[row.first - top : row.last - top, across] += output[_used(row), _used(column)] * weights
    finish(group.box.bottom)
    return count


# Coarse to fine


@dataclass(frozen=True)
class _Guide:
    """A fill at half scale that guides the one at full scale.

    Attributes:
        top, left: position in pixels of the full scale; even.
        pixels: [height, width, channels] at half scale.
        deep: bool per cell of ``cell`` pixels of the full scale: where the fill is used.
    """

    top: int
    left: int
    pixels: np.ndarray
    deep: np.ndarray
    cell: int

    def add(self, image: np.ndarray, valid: np.ndarray, top: int, left: int) -> None:
        """Marks one pixel in four of a window's deep holes as valid and sets its color, in place."""
        at, near, cells = [], [], []
        for start, offset, length in ((top, self.top, image.shape[0]), (left, self.left, image.shape[1])):
            first = (start - offset) % 2
            place = np.arange(first, length, 2) + (start - offset)
            at.append(slice(first, length, 2))
            near.append(place // 2)
            cells.append(place // self.cell)
        # The center of an even pixel lies a quarter of a coarse pixel before the center of its coarse pixel.
        rows, columns = near
        values = self.pixels[np.maximum(np.arange(rows[0] - 1, rows[-1] + 1), 0)].astype(np.float32)
        values = 0.75 * values[1:] + 0.25 * values[:-1]
        values = 0.75 * values[:, columns] + 0.25 * values[:, np.maximum(columns - 1, 0)]
        samples, used = image[tuple(at)], self.deep[np.ix_(*cells)]
        samples[used] = (values / np.iinfo(self.pixels.dtype).max)[used]
        valid[tuple(at)][used] = 1


def _make_guide(pixels: np.ndarray, mask: np.ndarray, box: Box, model: Model) -> tuple[_Guide | None, int]:
    """Fills the surroundings of ``box`` at half scale if any hole in it is deep; also returns the number of windows."""
    reach, margin = model.tiling.size // 2, model.tiling.margin
    top, left = (max(0, first - reach) // 2 * 2 for first in box[:2])
    bottom, right = (min(length, last + reach) for length, last in zip(mask.shape, box[2:], strict=True))
    region = slice(top, bottom), slice(left, right)
    cell = max(1, margin // 8)
    deep = _deep_cells(mask[region], cell, max(1, margin // cell))
    if not deep.any():
        return None, 0
    coarse, coarse_mask = halve(pixels[region], mask[region])
    (count,) = fill_images([coarse], [coarse_mask], model)
    return _Guide(top, left, coarse, deep, cell), count


def _deep_cells(mask: np.ndarray, cell: int, distance: int) -> np.ndarray:
    """Cells that have no valid pixel within ``distance`` cells."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % cell), (0, -width % cell)))
    cells = padded.reshape(padded.shape[0] // cell, cell, padded.shape[1] // cell, cell).max((1, 3))
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    return cv2.dilate(cells, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 0


def halve(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGB (or gray) and mask at half scale: the mean of the valid pixels of each 2 x 2, valid if there is one."""
    height, width = mask.shape
    channels = 3 if pixels.shape[2] >= 3 else 1
    coarse = np.empty((-(-height // 2), -(-width // 2), channels), pixels.dtype)
    coarse_mask = np.empty(coarse.shape[:2], np.uint8)
    for begin in range(0, height, _STRIP):
        rows = slice(begin, begin + _STRIP)
        valid = mask[rows, :, None].astype(np.float32)
        padding = ((0, valid.shape[0] % 2), (0, width % 2), (0, 0))
        total = [np.pad(part, padding) for part in (pixels[rows, :, :channels] * valid, valid)]
        total = [part[::2] + part[1::2] for part in total]
        colors, weight = (part[:, ::2] + part[:, 1::2] for part in total)
        at = slice(begin // 2, begin // 2 + len(weight))
        coarse[at] = np.rint(colors / np.maximum(weight, 1)).astype(pixels.dtype)
        coarse_mask[at] = weight[..., 0] > 0
    return coarse, coarse_mask
