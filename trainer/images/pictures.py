"""Image files as pixels of their own depth and channels, and back: nothing of a valid pixel is lost on the way.

What viewers need stays with the pixels: the ICC profile and the EXIF orientation. Nothing else does; an EXIF
block may hold a thumbnail of what is to be removed.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from masks.codec import mask_of_gray, read_mask_image
from trainer.errors import ImageError
from trainer.images import rgb

QUALITY = 95
# What else Pillow opens is either not for photographs or not checked here for bit depths that it would cut.
READABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_WEBP_SIDE = 16_383
_ORIENTATION = 0x0112
_INVERSE = {6: 8, 8: 6}  # of orientations; the others undo themselves


@dataclass(frozen=True)
class Metadata:
    """What an image file keeps beside its pixels.

    Attributes:
        orientation: EXIF's, 1 to 8: how viewers turn the pixels; 1 is upright.
        icc: color profile of the pixels, if the file has one.
        format: of the file, one of `READABLE`; empty for pixels that were read from no file.
    """

    orientation: int = 1
    icc: bytes | None = None
    format: str = ""


@dataclass(frozen=True)
class Picture:
    """The content of an image file.

    Attributes:
        pixels: uint8 or uint16 [height, width, channels] as stored; 1 channel is grey, 2 grey and alpha, 3 RGB, 4
            RGB and alpha. Alpha is not premultiplied.
        metadata: how they are to be shown.
    """

    pixels: np.ndarray
    metadata: Metadata = Metadata()

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[2] in (2, 4)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of stored pixels [height, width, ...] as a viewer shows them."""
    swapped = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    across, down = (orientation in (2, 3, 6, 7)), (orientation in (3, 4, 7, 8))
    return swapped[:: -1 if down else 1, :: -1 if across else 1]


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of upright pixels as they are to be stored: `turn` undone."""
    return turn(pixels, _INVERSE.get(orientation, orientation))


# Reading


def decode(data: bytes, max_pixels: int = rgb.MAX_PIXELS) -> Picture:
    """The first frame of an image file.

    Palettes become RGB, one bit grey; CMYK and the like become RGB and lose their profile, which is of other channels.
    TIFFs are turned upright.

    Raises:
        ImageError: the bytes are no image, too large, truncated or broken, or have 32 bits per channel.
    """
    header = rgb.read_header(data, max_pixels)
    if header.format not in READABLE:
        raise ImageError(f"expected one of {', '.join(READABLE)}. Received {header.format}.")
    if header.mode in ("I", "F"):  # no agreed white
        raise ImageError(f"expected 8 or 16 bits per channel. Received 32, as {header.format} of mode {header.mode}.")
    try:
        image = _load(data)
        is_wide = _bits(image, data) == 16
        icc = image.info.get("icc_profile")
        orientation = _orientation(image)
        pixels = _wide_pixels(image, data) if is_wide else _narrow_pixels(image)
    except Exception as error:  # as many kinds as Pillow's plugins have
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    keeps_profile = image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA") or image.mode.startswith("I;16")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return Picture(pixels, Metadata(orientation, icc if keeps_profile else None, header.format))


def _load(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller's limit was checked
        image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel in the file; Pillow has 16 of grey alone, and cuts those of colours to 8."""
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return data[24]  # of the IHDR chunk, which comes first
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))
    return 8


def _orientation(image: Image.Image) -> int:
    """A broken EXIF block does not make the pixels unusable: it turns nothing."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _narrow_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [height, width] or [height, width, channels]."""
    mode = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode)
    if "transparency" in image.info:  # a colour or palette entries that are transparent
        mode = "LA" if image.mode in ("1", "L") else "RGBA"
    return np.array(image if image.mode == (mode or "RGB") else image.convert(mode or "RGB"))


def _wide_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint16 [height, width] or [height, width, channels]."""
    if "transparency" in image.info:
        raise ImageError("expected alpha as a channel. Received one transparent colour of 16 bits")
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    narrow = np.asarray(image)
    if found is not None and found.ndim == 3:
        found = cv2.cvtColor(found, cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    # Two readers agree on the high byte, or this is a file that one of them does not understand.
    if found is None or found.dtype != np.uint16 or not np.array_equal(found >> 8, narrow):
        raise ImageError(f"expected grey, RGB or RGBA of 16 bits. Received {image.format} of mode {image.mode}")
    is_grey_alpha = image.format == "PNG" and data[25] == 4  # both readers make it four channels
    return found[..., ::3] if is_grey_alpha else found


def decode_mask(data: bytes, hole: str, max_pixels: int = rgb.MAX_PIXELS) -> np.ndarray:
    """`masks.codec.read_mask_image` of a file that is whole: uint8 [height, width] of {0, 1}, 1 = valid, upright.

    Args:
        hole: ``black`` or ``white``, the colour of holes in it.

    Raises:
        ImageError: as `decode`.
    """
    rgb.read_header(data, max_pixels)
    try:
        image = _load(data)  # OpenCV would fill what is missing with grey
        is_plain = image.format == "PNG" and image.mode in ("1", "L") and "transparency" not in image.info
        if is_plain and _orientation(image) == 1:  # the same as below, without decoding twice
            return mask_of_gray(np.asarray(image.convert("L")), hole)
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
        kind: ``png`` and ``webp`` are lossless (WebP has no grey, which becomes RGB), ``jpeg`` is not.
        quality: of JPEG, 1 to 100.

    Raises:
        ImageError: see `check_encodable`.
    """
    check_encodable(picture, kind)
    exif, icc = None, picture.metadata.icc
    if picture.metadata.orientation != 1:
        block = Image.Exif()
        block[_ORIENTATION] = picture.metadata.orientation
        exif = block.tobytes()
    if kind == "png":
        chunks = []
        if icc:
            chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
        if exif:
            chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
        return _insert_chunks(_encode_png(picture.pixels), chunks)
    options = (
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
    """Puts chunks right behind IHDR, the first one, which ends at byte 33 (PNG specification, section 5.6)."""
    return png[:33] + b"".join(_chunk(*chunk) for chunk in chunks) + png[33:] if chunks else png


def _encode_png(pixels: np.ndarray) -> bytes:
    height, width, channels = pixels.shape
    if channels != 2:
        order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
        ordered = np.ascontiguousarray(pixels) if order is None else cv2.cvtColor(np.ascontiguousarray(pixels), order)
        return cv2.imencode(".png", ordered)[1].tobytes()
    # Grey with alpha is unknown to OpenCV, and of 16 bits to Pillow. Each row is stored as its difference to the one
    # above (filter 2, Up), modulo 256 by byte.
    bits = 8 * pixels.itemsize
    rows = np.ascontiguousarray(pixels.astype(f">u{pixels.itemsize}")).view(np.uint8).reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, bits, 4, 0, 0, 0)
    body = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 3)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in body)
