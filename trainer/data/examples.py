"""Training examples: targets and masks, made from the values of records and random numbers drawn for each example.

Pure functions of bytes and numbers, in NumPy and OpenCV: OpenCV resizes in a sixth of TensorFlow's time (0.08 ms
against 0.51 for a target of 256 x 256). Only TensorFlow's JPEG decoder can skip what lies outside a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from masks.codec import decode_mask
from trainer.config import DataConfig

TARGET_DRAWS, MASK_DRAWS = 4, 7  # random numbers that a target takes, and a mask
DRAWS = TARGET_DRAWS + MASK_DRAWS
JPEG_SIDE = 65_535  # pixels, at most


def draw_numbers(key: int, number: int) -> np.ndarray:
    """float64 [`DRAWS`], uniform in [0, 1), for example ``number``; ``key``: 64 bits."""
    # Raw words: NumPy keeps them stable across versions (numpy.org/neps/nep-0019-rng-policy.html).
    words = np.random.Philox(key=key, counter=[0, number, 0, 0]).random_raw(DRAWS)
    return (words >> np.uint64(11)) * 2.0**-53


class ExampleError(ValueError):
    """An example that cannot be made.

    Attributes:
        place: in its batch.
    """

    def __init__(self, place: int, why: str):
        super().__init__(why)
        self.place = place


# Targets


class Crop(NamedTuple):
    """A square of an image reduced by ``ratio`` (1, 2, 4 or 8), in pixels of the reduced image."""

    top: int
    left: int
    side: int
    ratio: int


def choose_crop(height: int, width: int, draws: Sequence[float], size: int, scales: tuple[float, float]) -> Crop:
    """A random square with a side of ``scales`` (low, high) of the image's shorter side.

    Args:
        draws: three numbers, uniform in [0, 1).
        size: of the target. A square of at least 2, 4 or 8 times its side is taken from the image reduced by as
            much, which a JPEG decoder does on the way.
    """
    shorter, (scale, y, x) = min(height, width), draws
    side = min(max(int(shorter * (scales[0] + (scales[1] - scales[0]) * scale)), 1), shorter)
    ratio = next((ratio for ratio in (8, 4, 2) if side >= size * ratio), 1)
    # The square lies on the grid of the reduced image, whose last pixel may cover fewer than ratio x ratio.
    height, width, side = height // ratio, width // ratio, side // ratio
    return Crop(int(y * (height - side + 1)), int(x * (width - side + 1)), side, ratio)


def make_target(
    encoded: bytes, height: int, width: int, draws: Sequence[float], size: int, config: DataConfig
) -> np.ndarray:
    """A random square of an image: uint8 [size, size, 3].

    Only the blocks of the JPEG that the square touches are decoded.

    Args:
        encoded: RGB JPEG of ``height`` x ``width``.
        draws: four numbers, uniform in [0, 1).

    Raises:
        tf.errors.InvalidArgumentError: it cannot be decoded.
        ValueError: no JPEG has such sides.
    """
    if not (1 <= height <= JPEG_SIDE and 1 <= width <= JPEG_SIDE):
        raise ValueError(f"image: expected sides of 1 to {JPEG_SIDE} pixels. Received {height} x {width}.")
    top, left, side, ratio = choose_crop(height, width, draws[:3], size, config.crop_scale)
    crop = tf.image.decode_and_crop_jpeg(encoded, [top, left, side, side], channels=3, ratio=ratio).numpy()
    if config.flip and draws[3] < 0.5:
        crop = crop[:, ::-1]
    if side == size:
        return crop
    # Down to half the size, bilinear interpolation still uses every pixel, in a sixth of the time of averaging.
    how = cv2.INTER_AREA if side > 2 * size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=how)


# Masks


def dilate_holes(mask: np.ndarray, radius: int) -> np.ndarray:
    """Grows holes by ``radius`` pixels in every direction (by a square).

    Args:
        mask: uint8 [H, W]; 0 = hole. Nothing outside it is a hole.
        radius: 0 or more.
    """
    return cv2.erode(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)) if radius else mask


def cut(mask: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of ``side`` pixels at (top, left), enlarged to the size of the mask by nearest neighbor.

    Args:
        mask: uint8 [S, S] of {0, 1}.
        top, left: the square may reach beyond the mask, where every pixel is valid.
        side: 1 .. S; with S the mask is moved, not enlarged.
    """
    size = len(mask)
    offset = (2 * np.arange(size) + 1) * side // (2 * size)  # the source pixel under each center
    rows, columns = top + offset, left + offset
    found = mask[np.ix_(rows.clip(0, size - 1), columns.clip(0, size - 1))]
    found[(rows < 0) | (rows >= size)] = 1
    found[:, (columns < 0) | (columns >= size)] = 1
    return found


def pick(draw: float, count: int) -> int:
    """Maps a number in [0, 1) to one of 0 .. count - 1."""
    return min(int(draw * count), count - 1)


def augment_mask(mask: np.ndarray, draws: Sequence[float], config: DataConfig) -> np.ndarray:
    """A mask varied by the config's ``mask_*`` values: turned, mirrored, moved, enlarged, with larger holes.

    All of these rearrange or spread pixels and never mix them, so a mask stays binary. Flips and quarter turns keep
    every pixel, hence the hole ratio and whether holes touch the border. The others do not, which is why they are off
    by default: a record's ``mask/hole_ratio`` no longer describes the mask afterwards.

    Args:
        mask: uint8 [S, S] of {0, 1}; 0 = hole.
        draws: `MASK_DRAWS` numbers, uniform in [0, 1).

    Returns:
        uint8 [S, S] of {0, 1}; possibly a view of ``mask``.
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
    # The eight symmetries of the square are the combinations of three flips. A quarter turn either way is a
    # transposition and one flip, a half turn is both flips.
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


def make_mask(encoded: bytes, draws: Sequence[float], size: int, config: DataConfig) -> np.ndarray:
    """The mask of a record, varied by `augment_mask`: uint8 [size, size] of {0, 1}.

    Args:
        draws: `MASK_DRAWS` numbers, uniform in [0, 1).

    Raises:
        ValueError: it cannot be decoded, or has another size.
    """
    mask = decode_mask(encoded)
    if mask.shape != (size, size):
        raise ValueError(f"mask: expected {size} x {size}. Received {mask.shape[0]} x {mask.shape[1]}.")
    return augment_mask(mask, draws, config)


# Batches


def make_batch(
    numbers: np.ndarray,
    jpegs: Sequence[bytes],
    heights: Sequence[int],
    widths: Sequence[int],
    pngs: Sequence[bytes],
    key: int,
    size: int,
    config: DataConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Targets float32 [B, size, size, 3] in [0, 1] and masks float32 [B, size, size, 1] of {0, 1}.

    Args:
        numbers: int64 [B], of the examples.
        jpegs, heights, widths: of the images.
        pngs: of the masks.
        key: 64 bits that, with an example's number, determine its random numbers.

    Raises:
        ExampleError: one of them cannot be decoded.
    """
    targets, masks = _empty(len(numbers), size, size, 3), _empty(len(numbers), size, size, 1)
    for place, number in enumerate(numbers.tolist()):
        draws = draw_numbers(key, number).tolist()
        try:
            target = make_target(
                jpegs[place], int(heights[place]), int(widths[place]), draws[:TARGET_DRAWS], size, config
            )
            masks[place, ..., 0] = make_mask(pngs[place], draws[TARGET_DRAWS:], size, config)
        except (tf.errors.OpError, ValueError) as error:
            raise ExampleError(place, str(error).splitlines()[0]) from None
        np.multiply(target, np.float32(1 / 255), out=targets[place])
    return targets, masks


def _empty(*shape: int) -> np.ndarray:
    """Float32 memory aligned to 64 bytes, which TensorFlow uses without a copy."""
    count = int(np.prod(shape))
    memory = np.empty(4 * count + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + 4 * count].view(np.float32).reshape(shape)
