"""From the bytes of an image file to RGB pixels, upright; what cannot be used says why.

Pillow reads the header before any pixel is decoded and refuses truncated files, which OpenCV fills
with grey.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112  # EXIF tag; 1 = upright


class ImageError(ValueError):
    """The bytes are not an image that can be used."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before its pixels are decoded; height and width as they are stored."""

    format: str
    mode: str
    height: int
    width: int
    upright: bool


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError("the file is not an image") from None
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise ImageError(f"the header is broken: {error}") from None
    if image.width * image.height > max_pixels:
        raise ImageError(f"expected at most {max_pixels} pixels. Received {image.width} x {image.height}.")
    return image


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises `ImageError` if the bytes are no image or promise more than ``max_pixels``."""
    image = _open(data, max_pixels)
    try:
        upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
    except Exception:  # a broken EXIF block does not make the pixels unusable
        upright = True
    return Header(str(image.format), image.mode, image.height, image.width, upright)


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as uint8 [height, width, 3], RGB, turned upright, transparency dropped, first frame.

    Raises:
        ImageError: the bytes are no image, too large, truncated or broken.
    """
    image = _open(data, max_pixels)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits to 255
            image = Image.fromarray(np.uint8(np.asarray(image, np.float64) / 257 + 0.5))
        return np.array(image.convert("RGB"))
    except Exception as error:
        raise ImageError(f"the pixels cannot be decoded: {error}") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [height, width, 3] RGB."""
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """JPEG of uint8 [height, width, 3] RGB; ``quality`` 0 to 100."""
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
