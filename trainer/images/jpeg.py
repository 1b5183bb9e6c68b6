"""Whether a JPEG file can be stored as it is, found out without decoding all of it.

    SOI, segments (tables, frame header, comments ...), SOS, coded data, [segments, SOS, coded data ...] EOI, [anything]

libjpeg reads any coded data to the end: errors in it are only warnings. What makes it give up are
broken segments and a file that ends before EOI. Pillow does not ask for EOI, TensorFlow does, so
here the marker structure is walked whole. Format: ITU-T T.81, annex B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # Huffman-coded: baseline, extended, progressive
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman and quantization tables, restart interval
_COMMENTS = (*range(0xE0, 0xF0), 0xFE)


@dataclass(frozen=True)
class Layout:
    """Of a file with one frame and all its markers in place: number of scans, where the first one's data begin."""

    scans: int
    data_start: int


def _next_marker(data: bytes, start: int) -> int:
    """Position of the marker that ends coded data; -1 if there is none. 0 (an FF of the data) and restarts do not."""
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


def read_layout(data: bytes) -> Layout | None:
    """Layout of an 8-bit JPEG of three components whose segments follow each other to EOI; None for any other bytes."""
    if data[:2] != b"\xff\xd8":
        return None
    position, frames, scans, data_start = 2, 0, 0, 0
    while position + 4 <= len(data) or data[position : position + 2] == b"\xff\xd9":
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == _EOI:
            return Layout(scans, data_start) if frames == 1 and scans else None
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
