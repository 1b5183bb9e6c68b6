"""TIFFs that Pillow does not read, or not right: 9 to 16 bits, several planes, kinds of alpha, white as zero.

Pillow's libtiff takes the strips or tiles apart as bytes; what those mean is said by the tags and done here, rows at a
time. Specification: TIFF 6.0, and its supplement 2 for the kinds of alpha.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import TiffImagePlugin

from trainer.errors import ImageError
from trainer.images import tiff_tags

_GRAY, _CMYK = (0, 1), 5
_COLORS = {0: 1, 1: 1, 2: 3, _CMYK: 4}  # samples that are no extra ones, by photometric interpretation
_PHOTOMETRICS = {3: "palette", 4: "mask", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32_803: "camera raw"}
_PHOTOMETRICS |= {32_844: "LogL", 32_845: "LogLuv", 34_892: "linear camera raw"}
_KINDS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex numbers"}
_COMPRESSIONS = {1, 5, 8, 32_773, 32_946, 50_000}  # those that give back the bytes that went in
_ASSOCIATED, _ALPHA = 1, (1, 2)
# Extra samples of 8-bit RGB that Pillow knows.
_PILLOWS = {(), (0,), (1,), (2,), (0, 0), (1, 0), (2, 0), (0, 0, 0), (1, 0, 0), (2, 0, 0)}
_WAY_OUT = "convert it to gray or RGB of 8 or 16 bits"
_BLOCK = 1 << 20  # samples that are converted at once


@dataclass(frozen=True)
class Layout:
    """What the tags of a TIFF's first page say of its pixels.

    Attributes:
        width, height: as stored, not turned.
        bits: of a sample.
        kind: of samples, 1 for unsigned integers (TIFF's SampleFormat).
        photometric: TIFF's PhotometricInterpretation.
        extras: of each sample beyond those of the color: 0 unspecified, 1 associated alpha, 2 alpha.
        is_planar: whether each sample has strips of its own.
        predictor: 2 if samples are stored as differences to those left of them.
        order: of bytes, ``<`` or ``>``.
    """

    width: int
    height: int
    bits: int
    kind: int
    photometric: int
    extras: tuple[int, ...]
    is_planar: bool
    predictor: int
    compression: int
    order: str

    @property
    def colors(self) -> int:
        return _COLORS.get(self.photometric, 3)

    @property
    def samples(self) -> int:
        return self.colors + len(self.extras)

    @property
    def alpha(self) -> int | None:
        """Which sample is alpha."""
        found = [n for n, kind in enumerate(self.extras) if kind in _ALPHA]
        return self.colors + found[0] if found else None

    @property
    def is_ours(self) -> bool:
        """Whether the pixels are read here, or nowhere; Pillow reads the others."""
        if self.bits > 8 or self.kind != 1:
            return True
        known = self.extras in (((), (2,)) if self.photometric == 1 else _PILLOWS)
        has_extras = self.bits == 8 and self.photometric in (*_GRAY, 2) and bool(self.extras)
        return has_extras and (self.is_planar or not known or self.photometric == 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out of the file, for people."""
        count = len(self.extras) - (self.alpha is not None)
        return (f"{count} extra channel{'s' * (count > 1)}, not said to be alpha, left out",) if count else ()

    def __str__(self) -> str:
        name = {0: "gray", 1: "gray", 2: "RGB", _CMYK: "CMYK"} | _PHOTOMETRICS
        color = name.get(self.photometric, f"photometric interpretation {self.photometric}")
        return f"{color} of {self.bits} bits" + (f" in {self.samples} samples" if self.extras else "")


def read_layout(data: bytes) -> Layout:
    """Raises `ImageError` for what is no TIFF."""
    tags = tiff_tags.read_tags(data)
    if tags is None:
        raise ImageError("the header is broken: expected a TIFF")
    bits = [int(value) for value in tags.values.get(258, (1,))]
    kinds = {int(value) for value in tags.values.get(339, (1,))}
    photometric = tags.first(262, 0)
    samples = max(tags.first(277, 1), len(bits))
    colors = _COLORS.get(photometric, 3)
    extras = [int(value) for value in tags.values.get(338, ())]
    missing = max(samples - colors, 0) - len(extras)
    # Without a word on it, the one sample beyond RGB is alpha to every reader.
    extras += [2] if missing == 1 and not extras and colors == 3 else [0] * max(missing, 0)
    return Layout(
        tags.first(256, 0),
        tags.first(257, 0),
        max(bits),
        kind=1 if kinds <= {1, 4} else max(kinds),
        photometric=photometric,
        extras=tuple(extras[: max(samples - colors, 0)]),
        is_planar=tags.first(284, 1) == 2,
        predictor=tags.first(317, 1),
        compression=tags.first(259, 1),
        order="<" if data[:2] == b"II" else ">",
    )


def check(data: bytes, layout: Layout) -> None:
    """Raises `ImageError` for pixels that nothing here reads, or that are not the image."""
    tags = tiff_tags.read_tags(data)
    assert tags is not None
    if tags.first(254, 0) & 1 or 50_706 in tags.values:
        raise ImageError(
            "expected a TIFF whose first page is the image. Received a reduced copy of it there, as cameras write raw "
            "files: develop it and save it as TIFF, PNG or JPEG."
        )
    if len(bits := {int(value) for value in tags.values.get(258, (1,))}) > 1:
        raise ImageError(f"expected one number of bits for all samples. Received TIFF of {sorted(bits)}: {_WAY_OUT}.")
    if layout.is_ours:
        _check_ours(layout, tags.first(266, 1))


def _check_ours(layout: Layout, fill_order: int) -> None:
    if layout.kind != 1:
        kind = _KINDS.get(layout.kind, f"sample format {layout.kind}")
        why = f"{layout.bits}-bit {kind}, of which no value is agreed to be white"
        raise ImageError(f"expected 8 or 16 bits per channel. Received TIFF of {why}: {_WAY_OUT}.")
    if layout.bits > 16:
        why = f"{layout.bits}-bit integers, which no output holds"
        raise ImageError(f"expected 8 or 16 bits per channel. Received TIFF of {why}: {_WAY_OUT}.")
    if layout.photometric not in _COLORS:
        raise ImageError(f"expected gray, RGB or CMYK. Received TIFF of {layout}: {_WAY_OUT}.")
    if layout.compression not in _COMPRESSIONS or fill_order != 1:
        how = f"compression {layout.compression}" if fill_order == 1 else "bits in reverse order (FillOrder 2)"
        raise ImageError(f"expected LZW, Deflate, PackBits, Zstandard or no compression. Received {how}: {_WAY_OUT}.")
    if layout.predictor not in (1, 2) or (layout.predictor == 2 and layout.bits not in (8, 16)):
        raise ImageError(f"expected no predictor. Received TIFF of {layout} with predictor {layout.predictor}.")


def read_samples(data: bytes, layout: Layout) -> np.ndarray:
    """Pixels of a TIFF that `budget.admit` lets pass and whose layout is ours.

    Returns:
        uint8 or uint16 [height, width, channels] as stored: gray or RGB with alpha if there is one, not premultiplied;
        CMYK as four inks. Samples of 9 to 15 bits are spread over 16. Other extra samples are left out.

    Raises:
        ImageError: strips are missing, truncated or broken.
    """
    channels = layout.colors + (layout.alpha is not None)
    dtype = np.uint8 if layout.bits <= 8 else np.uint16
    out = np.empty((layout.height, layout.width, channels), dtype)
    wanted = [*range(layout.colors), *([layout.alpha] if layout.alpha is not None else [])]
    if layout.is_planar:
        for place, sample in enumerate(wanted):
            for top, rows in _read_rows(data, layout, sample):
                out[top : top + len(rows), :, place] = rows[..., 0]
    else:
        for top, rows in _read_rows(data, layout, None):
            out[top : top + len(rows)] = rows[..., wanted]
    step = max(_BLOCK // layout.width, 1)
    for top in range(0, layout.height, step):
        _finish(out[top : top + step], layout)
    return out


def _finish(rows: np.ndarray, layout: Layout) -> None:
    """From stored values to those of a picture, in place."""
    white, colors = np.iinfo(rows.dtype).max, rows[..., : layout.colors]
    most = (1 << layout.bits) - 1
    if most != white:
        rows[...] = (rows.astype(np.uint32) * white + most // 2) // most
    if layout.photometric == 0:
        np.subtract(white, colors, out=colors)
    if layout.alpha is not None and layout.extras[layout.alpha - layout.colors] == _ASSOCIATED:
        alpha = rows[..., -1:].astype(np.uint32)
        straight = (colors.astype(np.uint32) * white + alpha // 2) // np.maximum(alpha, 1)
        colors[...] = np.where(alpha == 0, 0, np.minimum(straight, white))


def _read_rows(data: bytes, layout: Layout, plane: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, uint8 or uint16 [rows, width, samples]) of blocks of all samples, or of one plane."""
    tags = tiff_tags.read_tags(data)
    assert tags is not None
    samples = 1 if plane is not None else layout.samples
    is_tiled = 322 in tags.values
    across = tags.first(322, 0) if is_tiled else layout.width
    down = tags.first(323, 0) if is_tiled else min(tags.first(278, layout.height), layout.height)
    if across < 1 or down < 1:
        raise ImageError("the header is broken: expected strips or tiles with pixels")
    row_bytes = math.ceil(across * samples * layout.bits / 8)
    columns, lines = math.ceil(layout.width / across), math.ceil(layout.height / down)
    begin = (plane or 0) * columns * lines
    places, counts = (
        tags.values.get(number, np.zeros(0, np.uint32))[begin : begin + columns * lines]
        for number in ((324, 325) if is_tiled else (273, 279))
    )
    if len(counts) == 0 and layout.compression == 1:  # they may be left out, and follow from the size
        counts = np.full(len(places), row_bytes * down)
    if len(places) < columns * lines or len(counts) < len(places):
        raise ImageError(f"the header is broken: expected {columns * lines} strips or tiles. Received {len(places)}.")
    view = _open_bytes(data, (row_bytes, columns, layout.height, down, is_tiled), layout.compression, places, counts)
    step = max(_BLOCK // max(row_bytes * columns, 1), 1)
    for top in range(0, layout.height, step):
        block = np.asarray(view.crop((0, top, view.width, min(top + step, layout.height))))
        rows = _unpack(block.reshape(len(block), columns, row_bytes), layout, across * samples)
        rows = rows.reshape(len(block), columns, across, samples)
        if layout.predictor == 2:
            rows = np.cumsum(rows, axis=2, dtype=rows.dtype)
        yield top, rows.reshape(len(block), columns * across, samples)[:, : layout.width]


def _open_bytes(
    data: bytes,
    shape: tuple[int, int, int, int, bool],
    compression: int,
    places: np.ndarray,
    counts: np.ndarray,
) -> TiffImagePlugin.TiffImageFile:
    """The bytes of strips or tiles, decompressed, as a gray image of 8 bits: the same file with another directory.

    Args:
        shape: bytes in a row of a tile, tiles in a row, rows of the image, rows of a tile, and whether it has tiles;
            a strip is a tile of the whole width.
        places, counts: of each tile's bytes.
    """
    row_bytes, columns, height, down, is_tiled = shape
    tags: list[tuple[int, ArrayLike]] = [
        (256, [row_bytes * columns]),
        (257, [height]),
        (258, [8]),
        (259, [compression]),
        (262, [1]),
        (277, [1]),
    ]
    if is_tiled:
        tags += [(322, [row_bytes]), (323, [down]), (324, places), (325, counts)]
    else:
        tags += [(273, places), (278, [down]), (279, counts)]
    start = len(data) + len(data) % 2
    values, entries, below = b"", b"", start + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags, key=lambda pair: pair[0]):
        packed = np.asarray(numbers, "<u4").tobytes()
        where = packed if len(packed) == 4 else struct.pack("<I", below + len(values))
        values += b"" if len(packed) == 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(packed) // 4) + where
    directory = struct.pack("<H", len(tags)) + entries + bytes(4) + values
    head = struct.pack("<2sHI", b"II", 42, start)
    # BigTIFFs have another eight bytes of header, where nothing lies.
    file = b"".join((head, memoryview(data)[8:], bytes(start - len(data)), directory))
    try:
        view = TiffImagePlugin.TiffImageFile(io.BytesIO(file))
        view.load()
    except Exception as error:  # as many kinds as Pillow's plugins have
        raise ImageError(f"the pixels cannot be decoded: {error}") from None
    view.fp = None  # and the bytes with it
    return view


def _unpack(packed: np.ndarray, layout: Layout, count: int) -> np.ndarray:
    """uint8 or uint16 [rows, tiles, count] of the bytes of rows of tiles [rows, tiles, bytes]."""
    if layout.bits == 8:
        return packed
    if layout.bits == 16:
        return np.ascontiguousarray(packed).view(layout.order + "u2").astype(np.uint16)
    bits = np.unpackbits(packed, axis=2)[..., : count * layout.bits].reshape(*packed.shape[:2], count, layout.bits)
    weights = (1 << np.arange(layout.bits - 1, -1, -1)).astype(np.uint16)
    return (bits @ weights).astype(np.uint16)
