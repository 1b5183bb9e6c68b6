"""Image files as pixels of their own depth and channels, and back, without any loss to valid pixels.

What stands beside the pixels stays with them as far as it is still true: see `trainer.images.metadata`.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from trainer.errors import ImageError
from trainer.images import budget, color, metadata, rgb, tiff_samples
from trainer.images.headers import heif, jpeg2000
from trainer.images.metadata import Change, Metadata, orientation_of

QUALITY = 95
# Other formats that Pillow opens are not for photographs, or may have bit depths that it would cut unnoticed.
READABLE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF", "HEIF")
_WEBP_SIDE = 16_383


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

    Palettes become RGB, 1-bit images gray, and CMYK and CIELab sRGB, through the color profile if CMYK has one. TIFFs
    are turned upright. Extra channels that are not said to be alpha are left out.

    Raises:
        ImageError: the bytes are not an image, too large, truncated or broken, or of a form that is not read.
    """
    format, demand = budget.admit(data, max_pixels, own_depth=True)
    if layout := rgb.read_layout(data, format):
        pixels, metadata = _read_tiff(data, layout)
    else:
        pixels, metadata = _read_image(rgb.open_admitted(data, format, demand), data)
    return Picture(pixels, dataclasses.replace(metadata, frames=demand.frames))


def _read_tiff(data: bytes, layout: tiff_samples.Layout) -> tuple[np.ndarray, Metadata]:
    pixels, notes = tiff_samples.read_samples(data, layout), layout.notes
    is_inks = layout.colors == 4
    if is_inks:
        pixels = rgb.narrow_samples(pixels, data, layout)
        notes += (f"{layout.bits} bits per ink are read as 8 bits per color",)
    orientation = orientation_of(data)
    pixels = np.ascontiguousarray(rgb.turn(pixels, orientation))
    height, width, channels = pixels.shape
    change = Change(width, height, channels, 8 * pixels.itemsize, is_inks, orientation != 1)
    return pixels, metadata.of_tiff(data, change, notes)


def _read_image(image: Image.Image, data: bytes) -> tuple[np.ndarray, Metadata]:
    if image.format not in READABLE:
        raise ImageError(f"expected one of {', '.join(READABLE)}. Received {image.format}.")
    if image.mode in ("I", "F"):  # no agreed white
        raise ImageError(f"expected 8 or 16 bits per channel. Received 32, as {image.format} of mode {image.mode}.")
    mode, depth = image.mode, _bits(image, data)
    try:
        if image.format == "JPEG2000" and (profile := jpeg2000.read_profile(data)):
            image.info["icc_profile"] = profile
        image.load()
        orientation = rgb.read_orientation(image)
        convert = color.converter(mode, image.info.get("icc_profile"))
        is_wide = depth > 8 and image.format in ("PNG", "JPEG2000")
        pixels = _wide_pixels(image, data) if is_wide else _narrow_pixels(image, convert)
    except Exception as error:  # Pillow's plugins raise many kinds
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    notes: tuple[str, ...] = (color.UNMANAGED,) if mode == "CMYK" and convert is None else ()
    if depth > 8 * pixels.itemsize:
        notes += (f"{depth} bits per channel are read as {8 * pixels.itemsize}",)
    height, width, channels = pixels.shape
    change = Change(width, height, channels, 8 * pixels.itemsize, mode in ("CMYK", "LAB"))
    if image.format == "TIFF":
        notes += tiff_samples.read_layout(data).notes
        return pixels, metadata.of_tiff(data, change._replace(is_turned=orientation_of(data) != 1), notes)
    found = metadata.of_image(image, data, orientation, change, notes)
    if image.format in ("AVIF", "HEIF") and found.icc is None:
        found = dataclasses.replace(found, chunks=(*found.chunks, *metadata.coding_chunk(heif.read_coding(data))))
    return pixels, found


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel in the file; Pillow keeps 16 bits only of gray images and cuts colors to 8."""
    if image.format == "JPEG2000":
        return jpeg2000.read_depth(data)
    if image.format in ("AVIF", "HEIF"):
        return heif.read_depth(data)
    return data[24] if image.format == "PNG" else 8  # of the IHDR chunk, which comes first


def _narrow_pixels(image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None = None) -> np.ndarray:
    """uint8 [height, width] or [height, width, channels], of parts that are converted in the usual or another way."""
    mode = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode)
    if "transparency" in image.info:  # a transparent color or palette entries
        mode = "LA" if image.mode in ("1", "L") else "RGBA"
    wanted = mode or "RGB"
    pixels = np.empty((image.height, image.width, *((len(wanted),) if len(wanted) > 1 else ())), np.uint8)
    rgb.copy_pixels(image, pixels, convert or (lambda part: part if part.mode == wanted else part.convert(wanted)))
    return pixels


def _wide_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint16 [height, width] or [height, width, channels]."""
    if image.format == "JPEG2000":
        return jpeg2000.read_samples(data)
    key = image.info.get("transparency")  # the one color that is transparent, of 16 bits
    if image.mode.startswith("I;16"):
        pixels = np.empty((image.height, image.width), np.uint16)
        rgb.copy_pixels(image, pixels, lambda part: part)
        return pixels if key is None else _with_alpha(pixels[..., None], key)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is not None and found.ndim == 3 and key is not None:
        found = np.ascontiguousarray(found[..., :3])
    # Unless both readers agree on the high byte, one of them does not understand the file.
    if found is None or found.dtype != np.uint16 or not _swap_if_equal(found, image):
        raise ImageError(f"expected gray, RGB or RGBA of 16 bits. Received {image.format} of mode {image.mode}")
    if key is not None:
        return _with_alpha(found, key)
    is_gray_alpha = image.format == "PNG" and data[25] == 4  # both readers make it four channels
    return found[..., ::3] if is_gray_alpha else found


def _with_alpha(pixels: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """uint16 [height, width, channels + 1]: pixels of the color ``key`` are transparent."""
    out = np.empty((*pixels.shape[:2], pixels.shape[2] + 1), np.uint16)
    out[..., :-1] = pixels
    out[..., -1] = 65_535
    out[..., -1][(pixels == np.asarray(key, np.uint16)).all(-1)] = 0
    return out


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


# Writing


def check_encodable(picture: Picture, kind: str) -> None:
    """Raises `ImageError` if a format cannot hold the picture's size, depth or channels."""
    height, width, _ = picture.pixels.shape
    limit = {"jpeg": rgb.JPEG_SIDE, "webp": _WEBP_SIDE}.get(kind, 1 << 31)
    if max(height, width) > limit:
        raise ImageError(f"{kind} holds sides of at most {limit} pixels. Received {width} x {height}.")
    if kind != "png" and picture.pixels.dtype != np.uint8:
        raise ImageError(f"{kind} holds 8 bits per channel. Received 16: --format png holds both.")
    if kind == "jpeg" and picture.has_alpha:
        raise ImageError("jpeg holds no transparency. Received an alpha channel: --format png or webp holds it.")
    if kind != "png" and picture.metadata.coding:
        coding = "/".join(map(str, picture.metadata.coding))
        raise ImageError(f"{kind} cannot say colors of cICP {coding}, as of HDR or wide gamut: --format png does.")
    icc = picture.metadata.icc or b""
    if kind == "webp" and picture.pixels.shape[2] < 3 and icc[16:20] == b"GRAY":
        raise ImageError("webp holds no gray, which the image's color profile is of: --format png does.")


def encode(picture: Picture, kind: str = "png", quality: int = QUALITY) -> bytes:
    """An image file with the picture's pixels and metadata; the same bytes for the same picture.

    JPEG and WebP have no chunks: a gAMA or cHRM that is not sRGB's becomes a color profile, texts a comment (JPEG).

    Args:
        kind: ``png`` and ``webp`` are lossless (WebP has no gray, which becomes RGB), ``jpeg`` is not.
        quality: of JPEG, 1 to 100.

    Raises:
        ImageError: see `check_encodable`.
    """
    check_encodable(picture, kind)
    if kind == "png":
        return _insert_chunks(_encode_png(picture.pixels), metadata.chunks_of(picture.metadata))
    channels = picture.pixels.shape[2]
    options: dict[str, Any] = (
        {"lossless": True, "exact": True, "method": 0} if kind == "webp" else {"quality": quality, "subsampling": 0}
    )
    options |= metadata.options_of(picture.metadata, kind, channels)
    pixels = picture.pixels[..., 0] if channels == 1 else picture.pixels
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
    return metadata.set_density(file.getvalue(), picture.metadata.density) if kind == "jpeg" else file.getvalue()


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
