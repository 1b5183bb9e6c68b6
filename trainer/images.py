"""From the bytes of an image file to RGB pixels, upright; what cannot be used says why.

Pillow reads the header before any pixel is decoded and refuses truncated files, which OpenCV fills
with grey.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112  # EXIF tag; 1 = upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The bytes are not an image that can be used."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before its pixels are decoded; turning upright may swap height and width."""

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
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow has a limit of its own
        raise ImageError(f"expected at most {max_pixels} pixels. {error}") from None
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise ImageError(f"the header is broken: {error}") from None
    if image.width * image.height > max_pixels:
        raise ImageError(f"expected at most {max_pixels} pixels. Received {image.width} x {image.height}.")
    return image


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises `ImageError` if the bytes are no image or promise more than ``max_pixels``."""
    image = _open(data, max_pixels)
    return Header(str(image.format), image.mode, image.height, image.width, _turn_of(image) is None)


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes the pixels upright. A broken EXIF block does not make them unusable: it turns nothing."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:
        return None


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as uint8 [height, width, 3], RGB, turned upright, transparency dropped, first frame.

    Raises:
        ImageError: the bytes are no image, too large, truncated or broken, or have 32 bits per channel.
    """
    image = _open(data, max_pixels)
    if image.mode in ("I", "F"):  # no agreed white: Pillow would clip at 255
        raise ImageError(f"expected 8 or 16 bits per channel. Received 32, as {image.format} of mode {image.mode}.")
    try:
        image.load()
        turn = _turn_of(image)
        if turn is not None:  # the first of them is 0
            image = image.transpose(turn)
        if "transparency" in image.info:  # straight to RGB, Pillow warns of palettes with transparency
            image = image.convert("RGBA")
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
