"""EXIF blocks: what of them may stand beside an inpainted picture, byte for byte, and what may not.

Thumbnails, previews and makers' notes show or may show what was removed: they are left out. What speaks of the file
(strips, compression) is left out, too, and the size is said anew. Format: EXIF 2.32, which is that of TIFF.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from trainer.errors import ImageError
from trainer.images import tiff_tags
from trainer.images.tiff_tags import Entry

ORIENTATION, XMP, ICC = 0x0112, 700, 34_675
_EXIF, _GPS, _INTEROPERABILITY = 34_665, 34_853, 40_965
_X_RESOLUTION, _Y_RESOLUTION, _UNIT = 282, 283, 296
_COLOR_SPACE, _WIDTH, _HEIGHT = 0xA001, 0xA002, 0xA003
# Of the first directory: document and description, maker and model, resolution, page, software, date, artist, host,
# white point and primaries, rating, copyright, exposure, what Windows writes, lens and owner.
_KEPT = {269, 270, 271, 272, *(_X_RESOLUTION, _Y_RESOLUTION, _UNIT), 285, 305, 306, 315, 316, 318, 319}
_KEPT |= {18_246, 18_249, 33_432, 33_434, 33_437, 36_867, *range(40_091, 40_096), *range(42_032, 42_038)}
_MAKER_NOTE = 37_500
_DESCRIPTION = 270
_OF_FILE = re.compile(
    rb'\s*(\{"shape":|ImageJ=|SCIFIO=|(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<OME\b)', re.DOTALL
)  # pages, channels
_LARGEST = 32_768  # bytes of a value; texts have less, pictures more
_PARENTS = ((_INTEROPERABILITY, _EXIF), (_EXIF, 0), (_GPS, 0))


class Exif(NamedTuple):
    """What is kept of an EXIF block, without the orientation.

    Attributes:
        order: of bytes, ``<`` or ``>``.
        entries: of the first directory, without pointers.
        below: entries of the directories below it, by the number of the pointer; interoperability is one of them.
    """

    order: str
    entries: tuple[Entry, ...]
    below: dict[int, tuple[Entry, ...]]

    def resolution(self) -> tuple[float, float, int] | None:
        """Pixels across and down, per inch (2) or centimeter (3), or of no unit (1)."""
        found = {entry.number: entry for entry in self.entries}
        try:
            across, down = (
                numerator / denominator
                for number in (_X_RESOLUTION, _Y_RESOLUTION)
                for numerator, denominator in [struct.unpack(self.order + "2I", found[number].value)]
            )
            unit = struct.unpack(self.order + "H", found[_UNIT].value)[0] if _UNIT in found else 2
        except (KeyError, struct.error, ZeroDivisionError):
            return None
        return (across, down, unit) if across > 0 and down > 0 else None


def read(block: bytes, width: int, height: int, to_srgb: bool = False) -> Exif | None:
    """What is kept of a block, with the size of the pixels it stands beside; None if nothing is.

    Args:
        block: a TIFF, or an EXIF block without its prefix.
        width, height: of the pixels, as stored.
        to_srgb: whether their colors have become sRGB.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        kept = _keep(tiff_tags.read_entries(block, numbers=_KEPT))
        pointers = {entry.number: entry for entry in tiff_tags.read_entries(block, numbers=(_EXIF, _GPS))}
        below = {number: _follow(block, entry, order) for number, entry in pointers.items()}
        inner = [entry for entry in below.get(_EXIF, ()) if entry.number == _INTEROPERABILITY]
        if inner:
            below[_INTEROPERABILITY] = _follow(block, inner[0], order)
    except (ImageError, struct.error):  # a broken block does not cost the pixels
        return None
    below[_EXIF] = tuple(_correct(entry, width, height, to_srgb, order) for entry in below.get(_EXIF, ()))
    below[_EXIF] = tuple(e for e in below[_EXIF] if e.number not in (_MAKER_NOTE, _INTEROPERABILITY))
    below = {number: entries for number, entries in below.items() if entries}
    return Exif(order, kept, below) if kept or below else None


def _keep(entries: list[Entry]) -> tuple[Entry, ...]:
    """Each number once, in order, without what is too long for a text or is of no known type."""
    first = {entry.number: entry for entry in reversed(entries)}
    kept = (entry for _, entry in sorted(first.items()) if 0 < len(entry.value) <= _LARGEST)
    return tuple(entry for entry in kept if entry.number != _DESCRIPTION or not _OF_FILE.match(entry.value))


def _follow(block: bytes, pointer: Entry, order: str) -> tuple[Entry, ...]:
    if len(pointer.value) != 4:
        return ()
    return _keep(tiff_tags.read_entries(block, struct.unpack(order + "I", pointer.value)[0]))


def _correct(entry: Entry, width: int, height: int, to_srgb: bool, order: str) -> Entry:
    if entry.number in (_WIDTH, _HEIGHT):
        side = width if entry.number == _WIDTH else height
        return Entry(entry.number, 4, 1, struct.pack(order + "I", side))
    if entry.number == _COLOR_SPACE and to_srgb:
        return Entry(entry.number, 3, 1, struct.pack(order + "H", 1))
    return entry


def with_resolution(block: Exif | None, across: float, down: float) -> Exif:
    """A block that says how many pixels are to an inch, as one of the file did in another place."""
    order, entries, below = block or Exif(">", (), {})
    dots = ((_X_RESOLUTION, across), (_Y_RESOLUTION, down))
    added = [Entry(number, 5, 1, struct.pack(order + "2I", round(value * 1000), 1000)) for number, value in dots]
    added.append(Entry(_UNIT, 3, 1, struct.pack(order + "H", 2)))
    rest = [entry for entry in entries if entry.number not in (_X_RESOLUTION, _Y_RESOLUTION, _UNIT)]
    return Exif(order, tuple(sorted((*rest, *added))), below)


def encode(block: Exif, orientation: int) -> bytes:
    """The block as a TIFF, which is without the prefix that JPEG has before it."""
    order, entries, below = block
    tables = {0: [*entries]} | {n: [*below.get(n, ())] for n in (_EXIF, _GPS, _INTEROPERABILITY)}
    if orientation != 1:
        tables[0].append(Entry(ORIENTATION, 3, 1, struct.pack(order + "H", orientation)))
    for number, parent in _PARENTS:  # a pointer to each that is not empty
        if tables[number]:
            tables[parent].append(Entry(number, 4, 1, bytes(4)))
    starts, place = {}, 8
    for number, table in tables.items():
        if table:
            starts[number], place = place, place + len(_directory(table, 0, order))
    for number, parent in _PARENTS:
        where = struct.pack(order + "I", starts.get(number, 0))
        tables[parent] = [e._replace(value=where) if e.number == number else e for e in tables[parent]]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + b"".join(_directory(tables[number], start, order) for number, start in starts.items())


def _directory(entries: list[Entry], start: int, order: str) -> bytes:
    """A directory that begins at ``start``, with its values behind it and no other directory after it."""
    table, values = struct.pack(order + "H", len(entries)), b""
    below = start + 2 + 12 * len(entries) + 4
    for number, kind, length, value in sorted(entries):
        where = value.ljust(4, b"\0")
        if len(value) > 4:
            where = struct.pack(order + "I", below + len(values))
            values += value + bytes(len(value) % 2)
        table += struct.pack(order + "HHI", number, kind, length) + where
    return table + bytes(4) + values
