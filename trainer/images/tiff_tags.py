"""Tags of TIFF files and of EXIF blocks, which have the same form, read without trusting a number in them.

A tag names where its values lie. Libraries copy the values of every tag into memory: 65,535 tags that all name the
same megabyte are 64 GB. Format: TIFF 6.0, section 2; BigTIFF has 64-bit counts and offsets.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import NamedTuple

import numpy as np

from trainer.errors import ImageError

MAX_TAGS = 4096  # of one directory; cameras and editors write less than 100
SPARE = 1 << 20  # bytes of values beyond those of a file whose tags share nothing
# Bytes of one value, by type: those that Pillow and libtiff know.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TEXTS = (1, 2, 6, 7)  # kept as bytes; other values become Python numbers
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
# EXIF, GPS, interoperability: directories that Pillow reads with the first one. SubIFDs it leaves alone.
_POINTERS = (34665, 34853, 40965)
_EVERY = range(1 << 16)
_MAX_PAGES = 1000
_Place = tuple[int, int, int, int, int]  # tag, type, count, where its values are, and how many bytes they have


class Tags(NamedTuple):
    """The first directory of a TIFF.

    Attributes:
        values: of the tags whose type is an integer; the first, if a tag is there twice.
        repeated: tags that are there more than once.
        bytes: of all values, and of the directories that Pillow reads with this one.
        numbers: how many of these values become Python numbers.
    """

    values: dict[int, np.ndarray]
    repeated: set[int]
    bytes: int
    numbers: int

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return int(self.values[tag][0]) if tag in self.values else default


class Entry(NamedTuple):
    """A tag with its values as they are in the file: ``length`` of them, of TIFF's type ``kind``."""

    number: int
    kind: int
    length: int
    value: bytes


def read_tags(data: bytes, all_there: bool = False) -> Tags | None:
    """Tags of a TIFF file, or of an EXIF block without its prefix; None for other bytes.

    Args:
        all_there: read those behind a broken one, too, as libtiff does and Pillow does not.

    Raises:
        ImageError: a directory has too many tags, or tags that share their values.
    """
    if (found := _read_head(data)) is None:
        return None
    order, is_big, start = found
    tags = _read_directory(data, start, order, is_big, all_there)
    for pointer in _POINTERS:
        for place in tags.values.get(pointer, ())[:1]:
            below = _read_directory(data, int(place), order, is_big)
            tags = tags._replace(bytes=tags.bytes + below.bytes, numbers=tags.numbers + below.numbers)
    return tags


def _read_head(data: bytes) -> tuple[str, bool, int] | None:
    """Byte order, whether it is a BigTIFF, and where the first directory begins; None for other bytes."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version not in (42, 43) or (version == 43 and len(data) < 16):
        return None
    is_big = version == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    return order, is_big, start


def read_entries(data: bytes, start: int | None = None, numbers: Container[int] = _EVERY) -> list[Entry]:
    """Tags of the directory at ``start``, by default the first one, whose numbers are among ``numbers``.

    Raises:
        ImageError: as `read_tags`.
    """
    if (found := _read_head(data)) is None:
        return []
    order, is_big, first = found
    places, _ = _walk_directory(data, first if start is None else start, order, is_big)
    return [Entry(tag, kind, n, data[where : where + size]) for tag, kind, n, where, size in places if tag in numbers]


def count_pages(data: bytes) -> int:
    """Directories of a TIFF that hold images of their own, not reduced copies or masks of others; at most 1000."""
    if (found := _read_head(data)) is None:
        return 0
    order, is_big, start = found
    seen: set[int] = set()
    pages = 0
    while start and start not in seen and len(seen) < _MAX_PAGES:
        seen.add(start)
        try:
            places, start = _walk_directory(data, start, order, is_big)
        except (ImageError, struct.error):  # only of pages that nobody reads
            break
        kinds = [data[where : where + size] for tag, _, _, where, size in places if tag == 254]
        kind = int.from_bytes(kinds[0], "little" if order == "<" else "big") if kinds else 0
        pages += bool(places) and not kind & 5
    return pages


def _read_directory(data: bytes, start: int, order: str, is_big: bool, all_there: bool = False) -> Tags:
    places, _ = _walk_directory(data, start, order, is_big, all_there)
    tags = Tags({}, set(), 0, 0)
    for tag, kind, length, where, _ in places:
        if tag in tags.values:
            tags.repeated.add(tag)
        elif kind in _INTEGERS and length:
            tags.values[tag] = np.frombuffer(data, order + _INTEGERS[kind], length, where)
    numbers = sum(length for _, kind, length, *_ in places if kind not in _TEXTS)
    return tags._replace(bytes=sum(size for *_, size in places), numbers=numbers)


def _walk_directory(
    data: bytes, start: int, order: str, is_big: bool, all_there: bool = False
) -> tuple[list[_Place], int]:
    """Tags up to the first whose values lie outside of ``data``, or all others; and the next directory or 0."""
    head, entry, inline = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
    first = start + struct.calcsize(order + head)
    if first > len(data):
        return [], 0
    (count,) = struct.unpack_from(order + head, data, start)
    step = struct.calcsize(order + entry) + inline
    count = min(count, (len(data) - first) // step)
    if count > MAX_TAGS:
        raise ImageError(f"expected at most {MAX_TAGS} tags in a directory. Received {count}.")
    total, places = 0, []
    for place in range(first, first + count * step, step):
        tag, kind, length = struct.unpack_from(order + entry, data, place)
        size, where = length * _SIZES.get(kind, 0), place + step - inline
        if size > inline:
            (where,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, where)
        if where + size > len(data) and all_there:
            continue
        if where + size > len(data):
            break
        total += size
        if total > 4 * len(data) + SPARE:
            raise ImageError(f"expected tags with values of their own. Received {total} bytes or more in {len(data)}.")
        places.append((tag, kind, length, where, size))
    last = data[first + count * step : first + count * step + inline]
    return places, int.from_bytes(last, "little" if order == "<" else "big")
