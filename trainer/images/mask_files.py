"""Mask files of others as masks: `read_mask`, which reads a file by what it holds.

    gray, 1 to 32 bits     two values are black and white, whatever they are; soft edges are split at half of the range
    labels                 0 is black and all others are white, unless the labels of holes are given
    palettes and colors    two colors, or paint on black or on white
    alpha                  transparent is black and opaque is white, where the color says nothing

What stays ambiguous is a `MaskError` that names the option which says it.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from masks.codec import MAX_PIXELS
from trainer.errors import ImageError, MaskError
from trainer.images import HOLES, budget, pictures, rgb, tiff_samples
from trainer.images.mask_colors import is_constant, is_same_split, split_color
from trainer.images.mask_levels import Split, is_label_map, split_gray

_LABEL = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?|#([0-9a-fA-F]{6})")
_LOSSY_NEUTRAL = 32  # difference of the channels that a lossy format gives to gray
_LOSSY_COLOR = 96  # difference in a channel within which a color of a lossy file is one that is named
_LOSSY_TIFFS = (6, 7, 50_001)  # compressions: JPEG twice, WebP
_HALF = 128  # from which alpha is opaque, and a color bright

Label = tuple[int, int] | str  # gray values or palette entries, first and last; or a color, such as #ff0000


@dataclass(frozen=True, kw_only=True)
class MaskReading:
    """How mask files say which pixels are holes.

    Attributes:
        hole: what marks them, one of `HOLES`; None with labels.
        labels: those of holes, from `parse_labels`; empty with ``hole``.
        threshold: fraction of the full range from which gray is white, and alpha opaque, whatever a file holds; None
            reads it by what it holds.
        soft: fraction of the range from which gray is white where edges are soft, without a threshold.

    Raises:
        ValueError: there is neither a hole nor a label, or both, or one is out of range.
    """

    hole: str | None = None
    labels: tuple[Label, ...] = ()
    threshold: float | None = None
    soft: float = 0.5

    def __post_init__(self):
        if (self.hole is None) == (not self.labels):
            raise ValueError(f"expected either hole or labels. Received {self.hole!r} and {self.labels!r}.")
        if self.hole is not None and self.hole not in HOLES:
            raise ValueError(f"hole: expected one of {HOLES}. Received {self.hole!r}.")
        for name in ("threshold", "soft"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: expected more than 0 and at most 1. Received {value!r}.")


class MaskFile(NamedTuple):
    """A mask, uint8 [height, width] of {0, 1}, 1 = valid, 0 = hole, as viewed; and in a few words how it was read."""

    mask: np.ndarray
    read_as: str


def parse_labels(text: str) -> tuple[Label, ...]:
    """Parses ``1``, ``1,3-5`` or ``#ff0000``. Raises ``ValueError``."""
    labels: list[Label] = []
    for part in text.split(","):
        found = _LABEL.fullmatch(part.strip())
        if not found or (found[2] and int(found[1]) > int(found[2])):
            raise ValueError(f"expected labels, such as 1, 1,3-5 or #ff0000. Received {text!r}.")
        labels.append(f"#{found[3].lower()}" if found[3] else (int(found[1]), int(found[2] or found[1])))
    return tuple(labels)


def read_mask(data: bytes, reading: MaskReading, max_pixels: int = MAX_PIXELS) -> MaskFile:
    """The mask in an image file.

    Args:
        data: the file.
        reading: what marks holes in it.
        max_pixels: files with more are refused.

    Raises:
        MaskError: it can be meant in more than one way, or holds nothing that ``reading`` asks for.
        ImageError: the bytes are not an image, too large, truncated or broken.
    """
    held = _decode(data, max_pixels, needs_alpha=reading.hole in ("transparent", "opaque"))
    if reading.labels:
        is_hole, read_as = _find_labels(held, reading.labels), "labels"
    else:
        white, read_as = _split(held, reading)
        is_hole = white if reading.hole in ("white", "opaque") else ~white
    return MaskFile(np.ascontiguousarray(rgb.turn((~is_hole).view(np.uint8), held.orientation)), read_as)


# Decoding


class _Held(NamedTuple):
    """What a mask file holds, as stored; None for what it does not.

    Attributes:
        gray: uint8 or uint16 [height, width].
        full: the value of white in ``gray``.
        step: what one label is in ``gray``: files of less than 8 bits are spread over all of them.
        color: uint8 [height, width, 3], RGB.
        entries: uint8 [height, width], of a palette.
        alpha: uint8 [height, width], where it is not the same everywhere; 255 is opaque.
        is_lossy: whether the format changes values a little.
        orientation: EXIF's.
    """

    gray: np.ndarray | None = None
    full: int = 255
    step: int = 1
    color: np.ndarray | None = None
    entries: np.ndarray | None = None
    alpha: np.ndarray | None = None
    is_lossy: bool = False
    orientation: int = 1


def _decode(data: bytes, max_pixels: int, needs_alpha: bool) -> _Held:
    format, demand = budget.admit(data, max_pixels, own_depth=True)
    if format == "TIFF":
        layout = tiff_samples.read_layout(data)
        is_numbers = layout.samples == 1 and (layout.bits > 16 or layout.kind != 1)  # which no picture holds
        if layout.is_ours and not is_numbers:
            return _of_picture(pictures.decode(data, max_pixels), data, _Held(), keeps_alpha=True)
    image = rgb.open_admitted(data, format, demand)
    try:
        image.load()  # refuses truncated files, which OpenCV would fill with gray
        # Of TIFFs, Pillow has turned the pixels and removed the orientation now.
        blank = _Held(is_lossy=_is_lossy(image, data), orientation=rgb.read_orientation(image))
        is_wide = image.mode.startswith("I;16")
        if image.mode in ("I", "F"):
            return _of_numbers(np.asarray(image), blank)
        # A transparent gray value says nothing that the gray does not say.
        is_gray = image.mode in ("1", "L") or (is_wide and image.format in ("PNG", "PPM"))
        if is_gray and not needs_alpha:
            gray = np.asarray(image.convert("L") if image.mode == "1" else image)
            bits = data[24] if image.format == "PNG" else 8  # of the IHDR chunk, which comes first
            full, step = 65_535 if is_wide else 255, 255 // (2**bits - 1) if bits < 8 else 1
            return blank._replace(gray=gray, full=full, step=step)
        if image.mode == "RGB" and image.format in ("JPEG", "MPO", "BMP", "PPM"):  # which have 8 bits, and no alpha
            return _of_channels(np.asarray(image), data, blank)
        if image.mode == "P":
            return _of_palette(image, blank)
        colored = "transparency" in image.info and image.mode in ("RGB", "L", "1")
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    del image  # and its pixels
    return _of_picture(pictures.decode(data, max_pixels), data, blank, keeps_alpha=needs_alpha or not colored)


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in data[:4096]
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(259) in _LOSSY_TIFFS
    return image.format in ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")


def _of_numbers(values: np.ndarray, blank: _Held) -> _Held:
    """Numbers of 32 bits as gray values: up to 65535, or fractions of 1."""
    low, high = float(values.min()), float(values.max())
    if 0 <= low <= high <= 1:
        return blank._replace(gray=np.rint(values * np.float32(255)).astype(np.uint8), step=255)
    if 0 <= low <= high <= 255:
        return blank._replace(gray=np.rint(values).astype(np.uint8))
    if 0 <= low <= high <= 65_535:
        return blank._replace(gray=np.rint(values).astype(np.uint16), full=65_535)
    raise MaskError(f"expected values from 0 to 65535, or fractions from 0 to 1. Received {low:g} to {high:g}.")


def _of_palette(image: Image.Image, blank: _Held) -> _Held:
    """A palette's entries, and the colors that it gives them."""
    entries = np.asarray(image)
    table = np.array(image.getpalette("RGBA") or [0] * 4, np.uint8).reshape(-1, 4)
    table = np.concatenate([table, np.tile(np.array([[0, 0, 0, 255]], np.uint8), (256 - len(table), 1))])
    transparency = image.info.get("transparency")
    if isinstance(transparency, int):
        table[transparency, 3] = 0
    elif transparency is not None:
        table[: len(transparency), 3] = list(transparency)
    used = table[np.flatnonzero(cv2.calcHist([entries], [0], None, [256], [0, 256]))]
    alpha = table[:, 3][entries] if np.ptp(used[:, 3]) else None
    if alpha is None and len(used) > 1 and not np.ptp(used[:, :3], axis=0).any():
        return blank._replace(gray=entries, entries=entries)  # a palette without colors
    if (used[:, 0] == used[:, 1]).all() and (used[:, 0] == used[:, 2]).all():
        return blank._replace(gray=table[:, 0][entries], entries=entries, alpha=alpha)
    return blank._replace(color=table[:, :3][entries], entries=entries, alpha=alpha)


def _of_picture(picture: pictures.Picture, data: bytes, blank: _Held, keeps_alpha: bool) -> _Held:
    pixels, alpha = picture.pixels, None
    if picture.has_alpha:
        alpha = pixels[..., -1] if pixels.dtype == np.uint8 else (pixels[..., -1] >> 8).astype(np.uint8)
        alpha = alpha if keeps_alpha and alpha.min() != alpha.max() else None
        pixels = pixels[..., :-1]
    return _of_channels(pixels, data, blank._replace(alpha=alpha, orientation=picture.metadata.orientation))


def _of_channels(pixels: np.ndarray, data: bytes, blank: _Held) -> _Held:
    """What uint8 or uint16 [height, width, 1 or 3] are: gray if the channels are the same, or nearly so."""
    full = 65_535 if pixels.dtype == np.uint16 else 255
    first = pixels[..., 0]
    if all(np.array_equal(first, pixels[..., channel]) for channel in range(1, pixels.shape[2])):
        return blank._replace(gray=np.ascontiguousarray(first), full=full)
    color = np.ascontiguousarray(_to_8_bits(pixels))
    if blank.is_lossy and int((color.max(axis=2) - color.min(axis=2)).max()) <= _LOSSY_NEUTRAL:
        gray = None
        if data[:2] in (b"\xff\xd8", b"RI"):  # a JPEG or WebP, which has a luminance of its own
            flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
            gray = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return blank._replace(gray=cv2.cvtColor(color, cv2.COLOR_RGB2GRAY) if gray is None else gray)
    return blank._replace(color=color)


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Values of 16 bits reduced to 8, unless they are of 8 bits already."""
    return (pixels >> 8 if pixels.max() > 255 else pixels).astype(np.uint8)


# Black and white


def _split(held: _Held, reading: MaskReading) -> Split:
    """White pixels of a file, and opaque ones if alpha marks the holes."""
    opaque = None if held.alpha is None else held.alpha >= math.ceil((reading.threshold or reading.soft) * 255)
    if reading.hole in ("transparent", "opaque"):
        if opaque is None:
            raise MaskError(f"expected an alpha channel that tells {reading.hole} pixels. Received none that varies.")
        return Split(opaque, "alpha")
    if opaque is None:
        return _split_colors(held, reading)
    color = _to_8_bits(held.gray[..., None]) if held.gray is not None else held.color
    assert color is not None and held.alpha is not None
    if not is_constant(color, np.ones(opaque.shape, bool), held.is_lossy):
        with contextlib.suppress(MaskError):
            split = _split_colors(held, reading)
            if is_same_split(split.white, opaque):
                return split
    seen = held.alpha >= _HALF
    if not is_constant(color, seen, held.is_lossy):
        raise MaskError(
            "expected black and white. Received colors and an alpha channel that differ: --hole transparent or opaque "
            "takes the alpha channel."
        )
    if reading.hole == "black" and seen.any() and color[seen].mean() < _HALF:  # the paint, or what it was painted on
        raise MaskError(
            "expected black and white. Received a dark color on a transparent ground: --hole transparent or opaque "
            "says which is the hole."
        )
    return Split(opaque, "alpha")


def _split_colors(held: _Held, reading: MaskReading) -> Split:
    gray, color = held.gray, held.color
    if color is not None and reading.threshold:
        gray = cv2.cvtColor(color, cv2.COLOR_RGB2GRAY)
    if gray is not None:
        by_threshold = reading.threshold is not None
        return split_gray(gray, held.full, held.is_lossy, reading.threshold or reading.soft, by_threshold)
    assert color is not None
    try:
        return split_color(color, held.is_lossy)
    except MaskError:
        if held.entries is None or not is_label_map(held.entries):
            raise
        return Split(held.entries > 0, "palette entries beside 0")


# Labels


def _find_labels(held: _Held, labels: tuple[Label, ...]) -> np.ndarray:
    """bool [height, width]."""
    some = held.gray if held.gray is not None else held.color
    assert some is not None
    is_hole = np.zeros(some.shape[:2], bool)
    for label in labels:
        if isinstance(label, str):
            is_hole |= _find_color(held, tuple(bytes.fromhex(label[1:])))
            continue
        values = held.entries if held.entries is not None else held.gray
        if values is None or held.is_lossy:
            kind = "a lossy format" if held.is_lossy else "colors"
            raise MaskError(f"expected labels as gray values or palette entries. Received {kind}.")
        step = held.step if held.entries is None else 1
        is_hole |= (values >= label[0] * step) & (values <= label[1] * step)
    return is_hole


def _find_color(held: _Held, color: tuple[int, ...]) -> np.ndarray:
    near = _LOSSY_COLOR if held.is_lossy else 0
    pixels = held.color if held.gray is None else _to_8_bits(held.gray)[..., None]
    assert pixels is not None
    is_near = np.abs(pixels.astype(np.int16) - np.array(color, np.int16)) <= near
    return np.asarray(is_near.all(axis=2))
