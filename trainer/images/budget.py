"""What one image may take: pixels, bytes of memory, seconds, bytes of its file. Every image file passes `admit` first.

All limits follow from one number, the pixels that an image may have. The others are for files that announce few pixels
and take much: a JPEG with thousands of scans, a TIFF with one huge tile, an EXIF block whose tags all share one value.
They are compared with what `headers` reads from the bytes, before a decoder sees them: nothing stops one that has
started.
"""

from __future__ import annotations

import importlib.util

from PIL import features

from masks.codec import MAX_PIXELS
from trainer import storage
from trainer.errors import ImageError
from trainer.images.headers import Demand, format_of, other_format_of, read_demand

_FILE_BYTES, _MEMORY_BYTES, _PIXEL_SECONDS = 8, 16, 1e-7  # for each pixel that an image may have
_LEAST_FILE, _LEAST_MEMORY, _LEAST_SECONDS = 1 << 20, 64 << 20, 10.0  # with ever so few


def max_file_bytes(max_pixels: int = MAX_PIXELS) -> int:
    """Size of the largest file worth reading: uncompressed, four channels of 16 bits, and 1 MiB for the rest."""
    return _FILE_BYTES * max_pixels + _LEAST_FILE


def max_memory(max_pixels: int = MAX_PIXELS) -> int:
    """Bytes that an image may take, its file included: an inpainted one of 100 megapixels and RGBA takes 1.2 GB."""
    return _MEMORY_BYTES * max_pixels + _LEAST_MEMORY


def max_seconds(max_pixels: int = MAX_PIXELS) -> float:
    """Seconds that decoding an image may take on one core, as estimated."""
    return _PIXEL_SECONDS * max_pixels + _LEAST_SECONDS


def read_file(address: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file.

    Raises:
        TooLarge: there are more of them than an image of ``max_pixels`` needs.
        UserError: it cannot be read.
    """
    return storage.read(address, max_bytes=max_file_bytes(max_pixels))


def admit(data: bytes, max_pixels: int = MAX_PIXELS, own_depth: bool = False) -> tuple[str, Demand]:
    """Pillow's name of the format of an image file that may be decoded, and what that takes.

    Args:
        own_depth: whether its pixels are kept at their own depth and filled; otherwise they become 8-bit RGB.

    Raises:
        ImageError: the bytes are not an image, or decoding them would take too much.
    """
    if not data:
        raise ImageError("the file is empty")
    format = format_of(data)
    if format is None and (other := other_format_of(data)):
        raise ImageError(f"{other} is not read: convert it to PNG, JPEG, WebP or TIFF")
    if format is None:
        raise ImageError("the file is not an image")
    _require_decoder(format)
    demand = read_demand(data, format)
    if demand.pixels == 0:
        raise ImageError(f"the header is broken: expected pixels. Received {demand.width} x {demand.height}.")
    if demand.pixels > max_pixels:
        raise ImageError(f"expected at most {max_pixels} pixels. Received {demand.width} x {demand.height}.")
    memory = len(data) + memory_of(demand, own_depth)
    if memory > max_memory(max_pixels):
        limits = f"expected a file that takes at most {max_memory(max_pixels) // 10**6} MB ({max_pixels} pixels)"
        raise ImageError(f"{limits}. Received {format} that takes {memory // 10**6} MB, {describe(demand)}.")
    if demand.seconds > max_seconds(max_pixels):
        limits = f"expected a file that takes at most {max_seconds(max_pixels):.0f} seconds ({max_pixels} pixels)"
        raise ImageError(f"{limits}. Received {format} that takes {demand.seconds:.0f} or more, {describe(demand)}.")
    return format, demand


def _require_decoder(format: str) -> None:
    """Raises `ImageError` if this installation cannot read a format, with what would."""
    if format == "HEIF" and importlib.util.find_spec("pillow_heif") is None:
        raise ImageError(
            "HEIC is read by an optional package, pillow-heif, which is missing: pip install 'pconv[heic]', or "
            "convert it to JPEG, PNG or TIFF"
        )
    feature = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(format)
    if feature and (
        feature not in features.features | features.codecs | features.modules or not features.check(feature)
    ):
        raise ImageError(f"{format} is not read by this build of Pillow: install its own wheel, or convert it to PNG")


def memory_of(demand: Demand, own_depth: bool) -> int:
    """Bytes of memory beside the file: while it is decoded, then as an array, then as three of them.

    A filled image is there as the decoded one, as the filled one, and in the order of channels that is encoded.
    """
    result = demand.own if own_depth else 3
    return max(demand.extra + demand.stored * demand.pixels, max(demand.stored + result, 3 * result) * demand.pixels)


def describe(demand: Demand) -> str:
    return f"{demand.width} x {demand.height} pixels" + (f" and {demand.because}" if demand.because else "")
