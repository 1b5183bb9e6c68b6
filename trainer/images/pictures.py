"""Image files as pixels of their own depth and channels, and back, without any loss to valid pixels.

The ICC profile and the EXIF orientation stay with the pixels, since viewers need them. No other metadata does: an
EXIF block may hold a thumbnail of what is to be removed.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from masks.codec import mask_of_gray, read_mask_image
from trainer.errors import ImageError
from trainer.images import rgb

QUALITY = 95
# Other formats that Pillow opens are not for photographs, or may have bit depths that it would cut unnoticed.
READABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_WEBP_SIDE = 16_383


@dataclass(frozen=True)
class Metadata:
    """What an image file keeps beside its pixels.

    Attributes:
        orientation: EXIF's, 1 to 8: how viewers turn the pixels; 1 is upright.
        icc: color profile of the pixels, if the file has one.
        format: of the file, one of `READABLE`; empty for pixels that do not come from a file.
    """

    orientation: int = 1
    icc: bytes | None = None
    format: str = ""


@dataclass(frozen=True)
class Picture:
    """The content of an image file.

    Attributes:
        pixels: uint8 or uint16 [height, width, channels] as stored; 1 channel is gray, 2 gray and alpha, 3 RGB, 4
            RGB and alpha. Alpha is not premultiplied.
        metadata: how they are to be shown.
    """

    pixels: np.ndarray
    metadata: Metadata = Metadata()

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


# Reading


def decode(data: bytes, max_pixels: int = rgb.MAX_PIXELS) -> Picture:
    """The first frame of an image file.

    Palettes become RGB, 1-bit images gray; CMYK and the like become RGB and lose their profile, which describes other
    channels. TIFFs are turned upright.

    Raises:
        ImageError: the bytes are not an image, too large, truncated or broken, or have 32 bits per channel.
    """
    image = rgb.open_image(data, max_pixels, own_depth=True)
    if image.format not in READABLE:
        raise ImageError(f"expected one of {', '.join(READABLE)}. Received {image.format}.")
    if image.mode in ("I", "F"):  # no agreed white
        raise ImageError(f"expected 8 or 16 bits per channel. Received 32, as {image.format} of mode {image.mode}.")
    try:
        image.load()
        is_wide = _bits(image, data) == 16
        icc = image.info.get("icc_profile")
        orientation = rgb.read_orientation(image)
        pixels = _wide_pixels(image, data) if is_wide else _narrow_pixels(image)
    except Exception as error:  # Pillow's plugins raise many kinds
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    keeps_profile = image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") or image.mode.startswith("I;16")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Picture(pixels, Metadata(orientation, icc if keeps_profile else None, str(image.format)))


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel in the file; Pillow keeps 16 bits only of gray images and cuts colors to 8."""
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return data[24]  # of the IHDR chunk, which comes first
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (8,)))
    return 8


def _narrow_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [height, width] or [height, width, channels]."""
    mode = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode)
    if "transparency" in image.info:  # a transparent color or palette entries
        mode = "LA" if image.mode in ("1", "L") else "RGBA"
    wanted = mode or "RGB"
    pixels = np.empty((image.height, image.width, *((len(wanted),) if len(wanted) > 1 else ())), np.uint8)
    rgb.copy_pixels(image, pixels, lambda part: part if part.mode == wanted else part.convert(wanted))
    return pixels


def _wide_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint16 [height, width] or [height, width, channels]."""
    if "transparency" in image.info:
        raise ImageError("expected alpha as a channel. Received one transparent color of 16 bits")
    if image.mode.startswith("I;16"):
        pixels = np.empty((image.height, image.width), np.uint16)
        rgb.copy_pixels(image, pixels, lambda part: part)
        return pixels
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    # Unless both readers agree on the high byte, one of them does not understand the file.
    if found is None or found.dtype != np.uint16 or not _swap_if_equal(found, image):
        raise ImageError(f"expected gray, RGB or RGBA of 16 bits. Received {image.format} of mode {image.mode}")
    is_gray_alpha = image.format == "PNG" and data[25] == 4  # both readers make it four channels
    return found[..., ::3] if is_gray_alpha else found


def _swap_if_equal(found: np.ndarray, image: Image.Image) -> bool:
    """Turns uint16 [height, width, channels] from BGR to RGB in place; False if ``image`` has other high bytes."""
    height, width, channels = found.shape if found.ndim == 3 else (*found.shape, 1)
    if (width, height) != image.size:
        return False
    code = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(channels)
    rows = max(rgb.BLOCK // width, 1)
    for top in range(0, height, rows):  # all at once would take three times the memory
        block = found[top : top + rows]
        if code is not None:
            block[...] = cv2.cvtColor(block, code)
        if not np.array_equal(block // 256, np.asarray(image.crop((0, top, width, top + len(block))))):
            return False
    return True


def decode_mask(data: bytes, hole: str, max_pixels: int = rgb.MAX_PIXELS) -> np.ndarray:
    """`masks.codec.read_mask_image` of a file that is whole: uint8 [height, width] of {0, 1}, 1 = valid, upright.

    Args:
        hole: ``black`` or ``white``, the color of holes in it.

    Raises:
        ImageError: as `decode`.
    """
    image = rgb.open_image(data, max_pixels, own_depth=True)
    try:
        image.load()  # refuses truncated files, which OpenCV would fill with gray
        is_plain = image.format == "PNG" and image.mode in ("1", "L") and "transparency" not in image.info
        if is_plain and rgb.read_orientation(image) == 1:  # the same as below without decoding twice
            return mask_of_gray(_narrow_pixels(image), hole)
        del image  # and its pixels
        return read_mask_image(data, hole)
    except Exception as error:
        raise ImageError(f"the pixels cannot be decoded: {error}") from None


# Writing


def check_encodable(picture: Picture, kind: str) -> None:
    """Raises `ImageError` if a format cannot hold the picture's size, depth or channels."""
    height, width, _ = picture.pixels.shape
    limit = {"jpeg": rgb.JPEG_SIDE, "webp": _WEBP_SIDE}.get(kind, 1 << 31)
    if max(height, width) > limit:
        raise ImageError(f"{kind} holds sides of at most {limit} pixels. Received {width} x {height}.")
    if kind != "png" and picture.pixels.dtype != np.uint8:
        raise ImageError(f"{kind} holds 8 bits per channel. Received 16.")
    if kind == "jpeg" and picture.has_alpha:
        raise ImageError("jpeg holds no transparency. Received an alpha channel.")


def encode(picture: Picture, kind: str = "png", quality: int = QUALITY) -> bytes:
    """An image file with the picture's pixels, profile and orientation; the same bytes for the same picture.

    Args:
        kind: ``png`` and ``webp`` are lossless (WebP has no gray, which becomes RGB), ``jpeg`` is not.
        quality: of JPEG, 1 to 100.

    Raises:
        ImageError: see `check_encodable`.
    """
    check_encodable(picture, kind)
    exif, icc = None, picture.metadata.icc
    if picture.metadata.orientation != 1:
        block = Image.Exif()
        block[rgb.ORIENTATION] = picture.metadata.orientation
        exif = block.tobytes()
    if kind == "png":
        chunks = []
        if icc:
            chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
        if exif:
            chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
        return _insert_chunks(_encode_png(picture.pixels), chunks)
    options: dict[str, Any] = (
        {"lossless": True, "exact": True, "method": 0} if kind == "webp" else {"quality": quality, "subsampling": 0}
    )
    options |= {"icc_profile": icc} if icc else {}
    options |= {"exif": exif} if exif else {}
    pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _insert_chunks(png: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Inserts chunks after IHDR, the first one, which ends at byte 33 (PNG specification, section 5.6)."""
    return png[:33] + b"".join(_chunk(*chunk) for chunk in chunks) + png[33:] if chunks else png


def _encode_png(pixels: np.ndarray) -> bytes:
    height, width, channels = pixels.shape
    if channels != 2:
        order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
        ordered = np.ascontiguousarray(pixels) if order is None else cv2.cvtColor(np.ascontiguousarray(pixels), order)
        return cv2.imencode(".png", ordered)[1].tobytes()
    # OpenCV cannot write gray with alpha, and Pillow not with 16 bits. Each row is stored as its difference to the row
    # above (filter 2, Up), modulo 256 per byte.
    bits = 8 * pixels.itemsize
    rows = np.ascontiguousarray(pixels.astype(f">u{pixels.itemsize}")).view(np.uint8).reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, 4, 0, 0, 0)
    body = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 3)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in body)
