"""Mask files: our own 1-bit PNG, and other people's mask images in any format.

On disk as in memory 1 = valid, so valid pixels are white. Other people's masks come in either polarity: the caller says
which, and it is converted here, once.
"""

from __future__ import annotations

import math
import struct

import cv2
import numpy as np

HOLES = ("black", "white")
MAX_PIXELS = 100_000_000  # of a mask, and of any image unless a user says otherwise
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"

# The Up filter suits holes: at 512 x 512, 4.8 kB and 0.29 ms a mask of the shapes family, against OpenCV's default
# (Sub) of 8.4 kB and 0.34 ms.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask as a grayscale PNG of 1 bit per pixel, white = valid.

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
        ValueError: ``data`` is not a complete PNG, has gray pixels, or more than `MAX_PIXELS`.
    """
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        if width * height > MAX_PIXELS:
            raise ValueError(f"data: expected at most {MAX_PIXELS} pixels. Received {width} x {height}.")
    elif data:
        raise ValueError(f"data: expected a complete image file. Received {len(data)} bytes that are not a PNG.")
    gray = _decode_gray(data)
    mask = gray & 1
    # Only 0 and 255: encode_mask writes nothing else, and other images must not pass for masks.
    if not np.array_equal(mask * np.uint8(255), gray):
        raise ValueError(
            "data: expected black and white pixels only; read_mask_image reads other masks. "
            f"Received gray values, such as {int(gray[(gray > 0) & (gray < 255)][0])}."
        )
    return mask


def read_mask_image(data: bytes, hole: str, threshold: float = 0.5) -> np.ndarray:
    """The mask in an image of any format, depth and number of channels that OpenCV reads, by brightness alone.

    The commands read mask files by what they hold, see `trainer.images.mask_files`.
    It is decoded whatever its size: `trainer.images.budget.admit` tells whether a file of others may be.

    Colors are converted to gray by their luminance (pure red is 76, so black), alpha is ignored, 16 bits are reduced to
    8, and an EXIF orientation is applied. A pixel is white if its gray value is at least ``threshold`` times 255: by
    default 0-127 are black and 128-255 white.

    Args:
        data: the bytes of an image file.
        hole: ``black`` or ``white``, the color of holes in it.
        threshold: fraction of the full range, in (0, 1].

    Returns:
        uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole.

    Raises:
        ValueError: ``data`` is not an image, or an argument is out of range.
    """
    return mask_of_gray(_decode_gray(data), hole, threshold)


def mask_of_gray(gray: np.ndarray, hole: str, threshold: float = 0.5) -> np.ndarray:
    """`read_mask_image` of a decoded image, uint8 [height, width] of 0 to 255."""
    if hole not in HOLES:
        raise ValueError(f"hole: expected one of {HOLES}. Received {hole!r}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected more than 0 and at most 1. Received {threshold!r}.")
    white = gray >= math.ceil(threshold * 255)  # an integer: NumPy would compare with a float in float64
    return (white if hole == "black" else ~white).astype(np.uint8)


def _decode_gray(data: bytes) -> np.ndarray:
    """uint8 [height, width] of any image."""
    try:
        gray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # empty data, or more pixels than OpenCV accepts
        gray = None
    if gray is None:
        raise ValueError(f"data: expected a complete image file. Received {len(data)} bytes that do not decode as one.")
    return gray
