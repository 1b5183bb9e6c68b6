"""Files made of boxes, each a length, a name and a content, which may be boxes; and what a JPEG 2000 announces.

Specifications: ISO/IEC 14496-12 (boxes) and 15444-1 (JPEG 2000).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from trainer.errors import ImageError
from trainer.images.headers.demand import Demand

_MAX_BOXES = 20_000  # of a file; a photograph of 48 megapixels has some hundred
_WAY_OUT = "convert it to PNG, JPEG or TIFF"


def walk_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, where it ends) of each box between two places."""
    end = len(data) if end is None else min(end, len(data))
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1 and start + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        stop = end if length == 0 else min(start + length, end)
        if stop < start + head:
            raise ImageError("the header is broken: expected a box that has the length of its own head")
        yield name, start + head, stop
        start = stop
    raise ImageError(f"expected at most {_MAX_BOXES} boxes in a file")


# JPEG 2000

_SOC, _SIZ, _COD, _QCD, _QCC, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF5C, 0xFF5D, 0xFF90, 0xFF93, 0xFFD9
# Of a component or a tile alone: coding style, region of interest, order, packed headers; transforms of part 2.
_REFUSED = {0xFF53: "COC", 0xFF5E: "RGN", 0xFF5F: "POC", 0xFF60: "PPM", 0xFF61: "PPT", 0xFF74: "MCT", 0xFF75: "MCC"}
_PASS_SECONDS, _BYTE_SECONDS = 2.5e-9, 220e-9  # OpenJPEG: for each sample in each coding pass, for each byte
_TILE_BYTES, _COMPONENT_BYTES, _BLOCK_BYTES = 6000, 1500, 400  # its structures


@dataclass
class _Style:
    """Coding style of a codestream: see `_read_main`."""

    layers: int = 1
    levels: int = 0
    block: tuple[int, int] = (6, 6)  # powers of two
    precincts: list[tuple[int, int]] = field(default_factory=list)
    planes: int = 0


def find_codestream(data: bytes) -> int:
    """Where the codestream of a JPEG 2000 begins; raises `ImageError` if it has none."""
    if data[:2] == b"\xff\x4f":
        return 0
    for name, start, _ in walk_boxes(data):
        if name == b"jp2c":
            return start
    raise ImageError("the header is broken: expected a codestream")


def read_depth(data: bytes) -> int:
    """Bits per channel of a JPEG 2000 that has been admitted."""
    start = find_codestream(data)
    (components,) = struct.unpack_from(">H", data, start + 40)
    return max(data[start + 42 : start + 42 + 3 * components : 3]) % 128 + 1


def read_profile(data: bytes) -> bytes | None:
    """The color profile of a JPEG 2000."""
    for name, place, end in walk_boxes(data) if find_codestream(data) else ():
        for inner, start, stop in walk_boxes(data, place, end) if name == b"jp2h" else ():
            if inner == b"colr" and data[start] == 2:
                return data[start + 3 : stop]
    return None


def read_samples(data: bytes) -> np.ndarray:
    """uint16 [height, width, channels] of a whole JPEG 2000 of 9 to 16 bits, which Pillow would round up past white.

    Raises:
        ImageError: it has two channels, or OpenCV cannot read it.
    """
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim == 3 and found.shape[2] not in (1, 3, 4):
        raise ImageError(
            f"expected gray, RGB or RGBA. Received JPEG 2000 of more than 8 bits in other ways: {_WAY_OUT}"
        )
    found = found[..., None] if found.ndim == 2 else found
    if found.shape[2] > 1:
        cv2.cvtColor(found, cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA, found)
    if (most := (1 << read_depth(data)) - 1) < 65_535:
        found = ((np.minimum(found, most).astype(np.uint32) * 65_535 + most // 2) // most).astype(np.uint16)
    return found


def read_jpeg2000(data: bytes) -> Demand:
    start = find_codestream(data)
    marker, size, *area = struct.unpack_from(">HHH8I", data, start + 2)
    right, bottom, left, top, across, down, tile_left, tile_top = area[1:] if len(area) == 9 else (0,) * 8
    (components,) = struct.unpack_from(">H", data, start + 40)
    if marker != _SIZ or size < 38 + 3 * components or not (across and down and right > left and bottom > top):
        raise ImageError("the header is broken: expected a size")
    if not 1 <= components <= 4:
        raise ImageError(f"expected JPEG 2000 of 1 to 4 channels. Received {components}: {_WAY_OUT}.")
    width, height = right - left, bottom - top
    for name, place, end in walk_boxes(data) if start else ():
        if name == b"jp2h":
            for inner, where, _ in walk_boxes(data, place, end):
                if inner == b"ihdr" and struct.unpack_from(">II", data, where) != (height, width):
                    raise ImageError("the header is broken: expected one size. Received two.")
    columns, rows = math.ceil((right - tile_left) / across), math.ceil((bottom - tile_top) / down)
    tiles = columns * rows
    style = _read_main(data, start + 2)
    _check_tile_parts(data, start)
    across, down = min(across, width), min(down, height)
    blocks, packets, most = _count_blocks(style, across, down)
    wide = read_depth(data) > 8
    memory = tiles * (_TILE_BYTES + components * _COMPONENT_BYTES) + components * blocks * _BLOCK_BYTES
    memory += 2 * style.layers * components * (style.levels + 1) * most
    memory += across * down * components * (10 if wide else 9) + len(data)
    passes = max(3 * style.planes - 2, 1)
    seconds = width * height * components * passes * _PASS_SECONDS + len(data) * _BYTE_SECONDS
    seconds += tiles * (packets * style.layers * components * 1e-6 + 50e-6)
    because = f"{tiles} tiles, {style.layers} layers and {passes} coding passes"
    own = components * (2 if wide else 1)
    stored = 4 + (6 * components if wide else 0)  # `read_samples`: values of 32 bits, and those of all channels
    return Demand(width, height, stored, own, memory, seconds, because)


def _segments(data: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """(marker, where its segment begins, where it ends) up to the start of a tile or of data."""
    while True:
        (marker,) = struct.unpack_from(">H", data, place)
        if marker in (_SOT, _SOD, _EOC):
            return
        (length,) = struct.unpack_from(">H", data, place + 2)
        if length < 2 or marker < 0xFF00:
            raise ImageError("the header is broken: expected a marker")
        if marker in _REFUSED:
            raise ImageError(f"expected one way of coding. Received JPEG 2000 with {_REFUSED[marker]}: {_WAY_OUT}.")
        yield marker, place + 2, place + 2 + length
        place += 2 + length


def _read_main(data: bytes, place: int) -> _Style:
    style, found = _Style(), set()
    for marker, start, end in _segments(data, place):
        found.add(marker)
        if marker == _COD:
            flags, _, style.layers, _, style.levels, wide, high = struct.unpack_from(">BBHBBBB", data, start + 2)
            if style.levels > 32 or not (wide <= 8 and high <= 8 and wide + high <= 8):
                raise ImageError("the header is broken: expected a coding style")
            style.block = (wide + 2, high + 2)
            sizes = data[start + 12 : end] if flags & 1 else b"\xff" * (style.levels + 1)
            style.precincts = [(size & 15, size >> 4) for size in sizes[: style.levels + 1]]
        elif marker in (_QCD, _QCC):
            # Of a component number there is one byte, since there are few components.
            quantization = data[start + (3 if marker == _QCC else 2) : end]
            guard, kind, steps = quantization[0] >> 5, quantization[0] & 31, quantization[1:]
            exponents = [step >> 3 for step in (steps if kind == 0 else steps[::2])]
            style.planes = max([style.planes, *(guard + exponent - 1 for exponent in exponents)])
    if not {_COD, _QCD} <= found or len(style.precincts) != style.levels + 1:
        raise ImageError("the header is broken: expected a coding style and a quantization")
    return style


def _check_tile_parts(data: bytes, start: int) -> None:
    """Raises `ImageError` for parts of tiles that are coded in ways of their own."""
    place = start + 2
    for _, _, end in _segments(data, place):
        place = end
    for _ in range(1 << 16):
        if place + 12 > len(data) or data[place : place + 2] != b"\xff\x90":
            return
        (length,) = struct.unpack_from(">I", data, place + 6)
        for marker, *_ in _segments(data, place + 12):
            if marker in (_COD, _QCD, _QCC):
                raise ImageError(f"expected one way of coding. Received JPEG 2000 with tiles of their own: {_WAY_OUT}.")
        if length == 0:
            return
        if length < 14:
            raise ImageError("the header is broken: expected a part of a tile")
        place += length
    raise ImageError("expected at most 65536 parts of tiles")


def _count_blocks(style: _Style, across: int, down: int) -> tuple[int, int, int]:
    """Of one component of a tile: code-blocks, precincts, and those of the resolution that has most; upper bounds."""
    blocks, precincts = 0, []
    for level, (right, bottom) in enumerate(style.precincts):
        width, height = (math.ceil(side / 2 ** (style.levels - level)) for side in (across, down))
        count = (math.ceil(width / 2**right) + 1) * (math.ceil(height / 2**bottom) + 1)
        sides = [min(exponent, side) for exponent, side in zip(style.block, (right, bottom), strict=True)]
        blocks += 3 * (math.ceil(width / 2 ** max(sides[0], 0)) + 1) * (math.ceil(height / 2 ** max(sides[1], 0)) + 1)
        blocks += 3 * count
        precincts.append(count)
    return blocks, sum(precincts), max(precincts)
