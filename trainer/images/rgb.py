"""From the bytes of an image file to RGB pixels, upright; what cannot be used says why.

Pillow reads the header before any pixel is decoded and refuses truncated files, which OpenCV fills
with grey.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer.errors import ImageError
from trainer.images import jpeg

MAX_PIXELS = 100_000_000
PILLOWS_LIMIT = 2 * Image.MAX_IMAGE_PIXELS  # beyond, Pillow itself refuses to open a file
# Of Pillow's other kinds, EPS would have Ghostscript run the file as a program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
JPEG_SIDE = 65_500  # the longest that libjpeg writes
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of sizes below the limit that is ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("the file is not an image") from None
    except Image.DecompressionBombError as error:  # Pillow has a limit of its own
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


def is_readable_jpeg(data: bytes) -> bool:
    """Whether libjpeg reads this three-channel JPEG to its end, as TensorFlow's decoders do and ask for.

    Of a file with one scan (all but progressive ones) only the structure and what comes before the
    coded data are tried, by decoding the file without them: in them libjpeg gives up at nothing.
    """
    layout = jpeg.read_layout(data)
    if layout is None:
        return False
    try:
        if layout.scans > 1:
            Image.open(io.BytesIO(data)).load()
        else:
            image = Image.open(io.BytesIO(data[: layout.data_start] + b"\xff\xd9"))
            image.draft("L", (image.width // 8, image.height // 8))
            image.load()
    except Exception:  # as many kinds as Pillow's plugins have
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What images are stored as.

    Attributes:
        short_side: the shorter side of larger images is shrunk to this many pixels; None keeps all sizes.
        quality: of JPEGs that are encoded anew, 1 to 100.
        max_pixels: images with more are refused.
        min_side: images with a side shorter than this are refused.
    """

    short_side: int | None = None
    quality: int = 95
    max_pixels: int = MAX_PIXELS
    min_side: int = 1

    def __post_init__(self):
        limits = {
            "short_side": (1, JPEG_SIDE),
            "quality": (1, 100),
            "max_pixels": (1, PILLOWS_LIMIT),
            "min_side": (1, JPEG_SIDE),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}. Received {value}.")

    @property
    def max_bytes(self) -> int:
        """Size of the largest file worth reading: no compression, four channels of 16 bits, and room for the rest."""
        return 8 * self.max_pixels + (1 << 20)


def to_jpeg(data: bytes, spec: ImageSpec) -> tuple[bytes, int, int]:
    """An upright RGB JPEG of an image file, with its height and width.

    It is ``data`` itself if that is one already, small enough, and sure to be read to its end; else encoded anew.

    Raises:
        ImageError: ``data`` is not an image that can be used.
    """
    header = read_header(data, spec.max_pixels)
    height, width = header.height, header.width
    if min(height, width) < spec.min_side:
        raise ImageError(f"expected sides of {spec.min_side} pixels or more. Received {width} x {height}.")
    scale = spec.short_side / min(height, width) if spec.short_side else 1.0
    plain = header.upright and (header.format, header.mode) == ("JPEG", "RGB") and is_readable_jpeg(data)
    if plain and scale >= 1:
        return data, height, width
    # OpenCV would read on where Pillow refuses; for files that are plain it is the faster one.
    bgr = None
    if plain:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        bgr = decode_rgb(data, spec.max_pixels)[..., ::-1]
    if scale < 1:
        sides = [max(spec.short_side, round(side * scale)) for side in (bgr.shape[1], bgr.shape[0])]
        bgr = cv2.resize(bgr, sides, interpolation=cv2.INTER_AREA)
    if max(bgr.shape) > JPEG_SIDE:
        raise ImageError(f"expected sides of at most {JPEG_SIDE} pixels. Received {bgr.shape[1]} x {bgr.shape[0]}.")
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, spec.quality])[1].tobytes()
    return encoded, bgr.shape[0], bgr.shape[1]


def encode_png(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [height, width, 3] RGB."""
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def encode_jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """JPEG of uint8 [height, width, 3] RGB; ``quality`` 0 to 100."""
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def center_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest centered square of uint8 [height, width, 3], resized to [size, size, 3]."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
