"""Masks as files: 1-bit PNG of ours, and any image of others.

On disk as in memory 1 = valid, so valid pixels are white. The masks of others come in either polarity; theirs is said
by the caller and turned here, once.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

HOLES = ("black", "white")

# The Up filter suits holes: at 512 x 512, 4.8 kB and 0.29 ms a mask of the shapes family, against OpenCV's default
# (Sub) of 8.4 kB and 0.34 ms.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask as a greyscale PNG of 1 bit per pixel, white = valid.

    Args:
        mask: uint8 [height, width] of {0, 1}, 0 = hole.

    Raises:
        ValueError: any other dtype, shape or value.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.size == 0 or mask.dtype != np.uint8:
        received = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else repr(type(mask))
        raise ValueError(f"mask: expected a uint8 array [height, width]. Received {received}.")
    if mask.max() > 1:
        raise ValueError(f"mask: expected values 0 (hole) and 1 (valid). Received values up to {mask.max()}.")
    done, data = cv2.imencode(".png", mask, _PNG_OPTIONS)
    if not done:
        raise ValueError(f"mask: expected a size that PNG can hold. Received {list(mask.shape)}.")
    return data.tobytes()


def decode_mask(data: bytes) -> np.ndarray:
    """The mask in a PNG written by ``encode_mask``.

    Returns:
        uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole.

    Raises:
        ValueError: ``data`` is not a whole image, or one with greys.
    """
    grey = _decode_grey(data)
    mask = grey & 1
    # 0 and 255 alone survive: anything else was never written by encode_mask, and must not pass for a mask.
    if not np.array_equal(mask * np.uint8(255), grey):
        raise ValueError(
            "data: expected a mask of black and white alone; read_mask_image reads others. "
            f"Received greys, such as {int(grey[(grey > 0) & (grey < 255)][0])}."
        )
    return mask


def read_mask_image(data: bytes, hole: str, threshold: float = 0.5) -> np.ndarray:
    """The mask in an image of others: any format, depth and number of channels that OpenCV reads.

    Colours are turned to grey by their luminance (pure red is 76, so black), alpha is ignored, 16 bits are cut to 8,
    and an EXIF orientation is applied. A pixel is white when its grey value is at least ``threshold`` of the range,
    which is that of the type, not of the values found: by default 0-127 are black and 128-255 white.

    Args:
        data: the bytes of an image file.
        hole: ``black`` or ``white``, the colour of holes in it.
        threshold: share of the range, more than 0, at most 1.

    Returns:
        uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole.

    Raises:
        ValueError: ``data`` is not an image, or an argument is outside its range.
    """
    return mask_of_grey(_decode_grey(data), hole, threshold)


def mask_of_grey(grey: np.ndarray, hole: str, threshold: float = 0.5) -> np.ndarray:
    """`read_mask_image` of a decoded image, uint8 [height, width] of 0 to 255."""
    if hole not in HOLES:
        raise ValueError(f"hole: expected one of {HOLES}. Received {hole!r}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected more than 0 and at most 1. Received {threshold!r}.")
    white = grey >= math.ceil(threshold * 255)  # an integer: with a float, NumPy would compare in float64
    return (white if hole == "black" else ~white).astype(np.uint8)


def _decode_grey(data: bytes) -> np.ndarray:
    """uint8 [height, width] of any image."""
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        grey = None
    if grey is None:
        raise ValueError(f"data: expected a whole image file. Received {len(data)} bytes that do not decode as one.")
    return grey
