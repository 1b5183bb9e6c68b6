"""RGB pixels from image files, upright, and back: `decode_rgb`, `to_jpeg`, `encode_png`, `encode_jpeg`.

Every file passes `trainer.images.budget.admit` first, which says its format too. Pillow then refuses truncated files,
which OpenCV would fill with gray.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from masks.codec import MAX_PIXELS
from trainer.errors import ImageError
from trainer.images import MOST_PIXELS, budget, color, exif, tiff_samples, tiff_tags
from trainer.images.headers import Demand, jpeg2000
from trainer.images.metadata import exif_block, orientation_of

JPEG_SIDE = 65_500  # the longest that libjpeg writes
_INVERSE = {6: 8, 8: 6}  # of orientations; the others undo themselves
BLOCK = 1 << 20  # pixels that are converted at once
# Markers of JPEG
_EOI, _SOS = 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # Huffman-coded: baseline, extended, progressive
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman and quantization tables, restart interval
_COMMENTS = (*range(0xE0, 0xF0), 0xFE)


@dataclass(frozen=True)
class Header:
    """Facts from a file's header, read without decoding pixels; height and width are those before turning upright."""

    format: str
    mode: str
    height: int
    width: int
    upright: bool


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, own_depth: bool = False) -> Image.Image:
    """Pillow's image of a file that may be decoded, without its pixels.

    Args:
        own_depth: see `budget.admit`.

    Raises:
        ImageError: the bytes are not an image, or decoding them would take too much.
    """
    return open_admitted(data, *budget.admit(data, max_pixels, own_depth))


def open_admitted(data: bytes, format: str, demand: Demand) -> Image.Image:
    """`open_image` of a file that `budget.admit` has let pass, with what that returned."""
    if demand.pixels > 2 * (Image.MAX_IMAGE_PIXELS or demand.pixels):  # Pillow's own limit, which no caller asked for
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of sizes below the limit that is ours
            image = _open_heic(data) if format == "HEIF" else Image.open(io.BytesIO(data), formats=(format,))
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        if format == "TIFF" and isinstance(error, UnidentifiedImageError):
            what = tiff_samples.read_layout(data)
            raise ImageError(f"expected gray or RGB of 8 or 16 bits. Received TIFF of {what}: convert it.") from None
        reason = f"expected {format}" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"the header is broken: {reason}") from None
    if format == "TIFF":
        image.info.pop("xmp", None)  # Pillow would turn the pixels by it
    if format in ("AVIF", "HEIF") and image.width * image.height <= demand.pixels:
        return image  # parts of it may be shown
    if sorted(image.size) != sorted((demand.width, demand.height)):  # Pillow turns the sizes of some TIFFs
        sizes = f"{demand.width} x {demand.height}. Received {image.width} x {image.height}"
        raise ImageError(f"the header is broken: expected one size, {sizes}.")
    return image


def _open_heic(data: bytes) -> Image.Image:
    import pillow_heif  # an optional package, which brings a library of its own

    return pillow_heif.HeifImageFile(io.BytesIO(data))


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Raises `ImageError` if the bytes are not an image or announce more than ``max_pixels``."""
    format, demand = budget.admit(data, max_pixels)
    if layout := read_layout(data, format):
        return Header(format, str(layout), layout.height, layout.width, orientation_of(data) == 1)
    image = open_admitted(data, format, demand)
    return Header(str(image.format), image.mode, image.height, image.width, read_orientation(image) == 1)


def read_layout(data: bytes, format: str) -> tiff_samples.Layout | None:
    """Layout of a file that `tiff_samples` reads, None for all others. Raises `ImageError` if nothing reads it."""
    if format != "TIFF":
        return None
    layout = tiff_samples.read_layout(data)
    tiff_samples.check(data, layout)
    return layout if layout.is_ours else None


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of which 1 is upright; 1 if the value or the EXIF block is broken.

    Pillow would also take one from XMP, which browsers do not.
    """
    try:
        if image.format == "TIFF":  # loading applies it
            value = image.getexif().get(exif.ORIENTATION, 1)
            return value if value in range(1, 9) else 1
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may lie behind the pixels
        return orientation_of(exif_block(image))
    except Exception:
        return 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of stored pixels [height, width, ...] as viewers show them (EXIF 2.3, table 6)."""
    swapped = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    across, down = (orientation in (2, 3, 6, 7)), (orientation in (3, 4, 7, 8))
    return swapped[:: -1 if down else 1, :: -1 if across else 1]


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `turn`: a view of upright pixels as they are stored."""
    return turn(pixels, _INVERSE.get(orientation, orientation))


def copy_pixels(image: Image.Image, out: np.ndarray, convert: Callable[[Image.Image], Image.Image]) -> None:
    """Writes the converted pixels of a loaded image to ``out`` [height, width, ...], block by block.

    Converting all of them at once would take three times their memory.
    """
    width, height = image.size
    if width * height <= BLOCK:
        out[...] = np.asarray(convert(image))
        return
    across = min(width, BLOCK)
    down = max(BLOCK // across, 1)
    for top in range(0, height, down):
        for left in range(0, width, across):
            block = image.crop((left, top, min(left + across, width), min(top + down, height)))
            out[top : top + down, left : left + across] = np.asarray(convert(block))


def _to_rgb(image: Image.Image) -> Image.Image:
    if "transparency" in image.info:  # straight to RGB, Pillow warns of palettes with transparency
        image = image.convert("RGBA")
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits to 255
        image = Image.fromarray((np.asarray(image, np.float64) / 257 + 0.5).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as uint8 [height, width, 3], RGB, turned upright, transparency dropped, first frame.

    CMYK becomes sRGB through its color profile; without one, by (255 - ink) (255 - black) / 255.

    Raises:
        ImageError: the bytes are not an image, too large, truncated or broken, or have 32 bits per channel.
    """
    format, demand = budget.admit(data, max_pixels)
    if layout := read_layout(data, format):
        stored = narrow_samples(tiff_samples.read_samples(data, layout), data, layout)
        return np.ascontiguousarray(turn(stored, orientation_of(data)))
    image = open_admitted(data, format, demand)
    if image.mode in ("I", "F"):  # no agreed white: Pillow would clip at 255
        raise ImageError(f"expected 8 or 16 bits per channel. Received 32, as {image.format} of mode {image.mode}.")
    try:
        image.load()
        orientation = read_orientation(image)  # of TIFFs Pillow has applied and removed it now
        pixels = np.empty((*(image.size if orientation >= 5 else image.size[::-1]), 3), np.uint8)
        if format == "JPEG2000" and jpeg2000.read_depth(data) > 8:
            pixels[...] = jpeg2000.read_samples(data)[..., :3] >> 8
            return pixels
        convert = color.converter(image.mode, image.info.get("icc_profile")) or _to_rgb
        copy_pixels(image, turn_back(pixels, orientation), convert)
    except Exception as error:
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    return pixels


def narrow_samples(samples: np.ndarray, data: bytes, layout: tiff_samples.Layout) -> np.ndarray:
    """uint8 [height, width, 3], RGB as stored, of what `tiff_samples.read_samples` has read."""
    out = np.empty((*samples.shape[:2], 3), np.uint8)
    is_inks = layout.colors == 4
    profiles = tiff_tags.read_entries(data, numbers=[exif.ICC]) if is_inks else []
    convert = color.converter("CMYK", profiles[0].value if profiles else None) or _to_rgb
    step = max(BLOCK // samples.shape[1], 1)
    for top in range(0, len(samples), step):
        part = samples[top : top + step, :, : layout.colors]
        if part.dtype == np.uint16 and layout.colors == 1:
            part = (part / 257 + 0.5).astype(np.uint8)
        elif part.dtype == np.uint16:
            part = (part >> 8).astype(np.uint8)  # as Pillow does
        out[top : top + step] = np.asarray(convert(Image.fromarray(part, "CMYK"))) if is_inks else part
    return out


# Writing


@dataclass(frozen=True)
class JpegLayout:
    """Structure of a file with one frame and all its markers in place.

    Attributes:
        scans: how many there are; more than one in progressive files.
        data_start: position of the first scan's coded data.
    """

    scans: int
    data_start: int


def _next_marker(data: bytes, start: int) -> int:
    """Position of the marker that ends coded data; -1 if the data end first.

    An FF of the data (stored as FF 00) and restart markers do not end it.
    """
    block = 1 << 14
    while start < len(data) - 1:
        codes = np.frombuffer(data, np.uint8, min(block, len(data) - start), start)
        after = codes[1:][codes[:-1] == 0xFF]
        (found,) = np.nonzero((after != 0) & ((after < 0xD0) | (after > 0xD7)))
        if len(found):
            return start + int(np.flatnonzero(codes[:-1] == 0xFF)[found[0]])
        start += len(codes) - 1  # the last byte may be the first of a marker
        block = 1 << 20
    return -1


def read_jpeg_layout(data: bytes) -> JpegLayout | None:
    """Layout of an 8-bit JPEG of three components whose segments follow each other to EOI; None for any other bytes.

        SOI, segments (tables, frame header, ...), SOS, coded data, [segments, SOS, coded data ...], EOI, [anything]

    libjpeg decodes any coded data to the end: errors in it are only warnings. It fails on broken segments and on a
    file that ends before EOI. Pillow does not require EOI, TensorFlow does, so the whole marker structure is walked.
    Format: ITU-T T.81, annex B.
    """
    if data[:2] != b"\xff\xd8":
        return None
    position, frames, scans, data_start = 2, 0, 0, 0
    while position + 4 <= len(data) or data[position : position + 2] == b"\xff\xd9":
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == _EOI:
            return JpegLayout(scans, data_start) if frames == 1 and scans else None
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _FRAMES:
            frames += 1
            precision, components = data[position + 4 : position + 5], data[position + 9 : position + 10]
            if (precision, components) != (b"\x08", b"\x03") or scans:
                return None
        elif marker == _SOS:
            scans, data_start = scans + 1, data_start or end
            end = _next_marker(data, end)
        elif marker not in _TABLES and marker not in _COMMENTS:
            return None
        if end <= position + 3:
            return None
        position = end
    return None


def is_readable_jpeg(data: bytes) -> bool:
    """Whether libjpeg reads this three-channel JPEG to its end, as TensorFlow's decoders require.

    Of a file with one scan (all but progressive ones) the coded data are left out of the trial, since libjpeg never
    fails in them: only the structure and what precedes them are decoded.
    """
    layout = read_jpeg_layout(data)
    if layout is None:
        return False
    try:
        if layout.scans > 1:
            Image.open(io.BytesIO(data), formats=("JPEG",)).load()
        else:
            image = Image.open(io.BytesIO(data[: layout.data_start] + b"\xff\xd9"), formats=("JPEG",))
            image.draft("L", (image.width // 8, image.height // 8))
            image.load()
    except Exception:  # as many kinds as Pillow's plugins have
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How images are stored in a dataset.

    Attributes:
        short_side: larger images are reduced to this many pixels on the shorter side; None keeps all sizes.
        quality: of JPEGs that are encoded again, 1 to 100.
        max_pixels: images with more pixels are refused.
        min_side: images with a shorter side are refused.
    """

    short_side: int | None = None
    quality: int = 95
    max_pixels: int = MAX_PIXELS
    min_side: int = 1

    def __post_init__(self):
        limits = {
            "short_side": (1, JPEG_SIDE),
            "quality": (1, 100),
            "max_pixels": (1, MOST_PIXELS),
            "min_side": (1, JPEG_SIDE),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: expected {low} to {high}. Received {value}.")

    @property
    def max_bytes(self) -> int:
        """Size of the largest file worth reading."""
        return budget.max_file_bytes(self.max_pixels)


def to_jpeg(data: bytes, spec: ImageSpec) -> tuple[bytes, int, int]:
    """An upright RGB JPEG of an image file, with its height and width.

    This is ``data`` itself if it already is one, small enough, and certain to decode; otherwise it is encoded again.

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
    # OpenCV is faster, but accepts damaged files that Pillow refuses; plain files have been checked.
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
