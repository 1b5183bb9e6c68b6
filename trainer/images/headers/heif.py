"""What AVIF and HEIC files announce, which are of one kind, HEIF, and differ in the codec.

The size is said around the coded data and in them, and codecs allocate by the latter: both are read, and the larger
counts. Specifications: ISO/IEC 23008-12 (HEIF), AV1 Bitstream 5.5 (sequence headers), H.265 7.3.2 (the same).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from trainer.errors import ImageError
from trainer.images.headers.demand import Demand
from trainer.images.headers.jpeg2000 import walk_boxes

_MAX_ITEMS = 4096
_PADDING = 64  # HEVC codes whole blocks of up to so many pixels
_WAY_OUT = "save it as one picture, or convert it to PNG, JPEG or TIFF"
_PIXEL_BYTES = 20  # of a decoded picture: planes of 16 bits, twice, and RGBA as bytes
_AV1_SECONDS, _HEVC_SECONDS = 80e-9, 80e-9  # for each pixel


@dataclass
class Items:
    """The meta box of a HEIF file: its items by number, which are images, grids of them, and metadata.

    Attributes:
        primary: number of the image that is shown.
        kinds: of each item.
        parts: (where, how many bytes) of the data of each item.
        properties: (name, content) of those of each item.
        made_of: items that each item is put together from.
        auxiliary: items that belong to another one, such as its transparency, and which.
        thumbnails: of other items.
    """

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    parts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    properties: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    made_of: dict[int, list[int]] = field(default_factory=dict)
    auxiliary: dict[int, int] = field(default_factory=dict)
    thumbnails: set[int] = field(default_factory=set)

    def size(self, number: int) -> tuple[int, int]:
        """Width and height that a property states, (0, 0) without one."""
        found = [content for name, content in self.properties.get(number, ()) if name == b"ispe"]
        return struct.unpack_from(">II", found[0], 4) if found else (0, 0)

    def first(self, name: bytes) -> bytes:
        """Content of a property of the primary image, or of the first picture that it is made of; empty without one."""
        for number in (self.primary, *self.made_of.get(self.primary, ())[:1]):
            for found, content in self.properties.get(number, ()):
                if found == name:
                    return content
        return b""


class _Reader:
    """Integers of a box, one after another."""

    def __init__(self, data: bytes, place: int, end: int):
        self._data, self._place, self._end = data, place, end

    def take(self, size: int) -> int:
        """The integer of the next ``size`` bytes; of none it is 0."""
        if self._place + size > self._end:
            raise ImageError("the header is broken: it ends too early")
        self._place += size
        return int.from_bytes(self._data[self._place - size : self._place], "big")


def read_items(data: bytes) -> Items:
    """Raises `ImageError` for a file without a primary image, or with ever so many items."""
    items = Items()
    meta = next(((start + 4, end) for name, start, end in walk_boxes(data) if name == b"meta"), None)
    if meta is None:
        raise ImageError(f"expected a still image. Received a sequence without one: {_WAY_OUT}.")
    boxes = {name: (start, end) for name, start, end in walk_boxes(data, *meta)}
    if b"pitm" not in boxes:
        raise ImageError("the header is broken: expected a primary image")
    start, end = boxes[b"pitm"]
    items.primary = _Reader(data, start + 4, end).take(4 if data[start] else 2)
    if b"iinf" in boxes:
        _read_kinds(data, *boxes[b"iinf"], items)
    if b"iloc" in boxes:
        _read_parts(data, *boxes[b"iloc"], boxes.get(b"idat", (0, 0)), items)
    if b"iprp" in boxes:
        _read_properties(data, *boxes[b"iprp"], items)
    if b"iref" in boxes:
        _read_references(data, *boxes[b"iref"], items)
    return items


def _read_kinds(data: bytes, start: int, end: int, items: Items) -> None:
    for name, place, stop in walk_boxes(data, start + (8 if data[start] else 6), end):
        if name == b"infe" and data[place] >= 2:
            reader = _Reader(data, place + 4, stop)
            number, _ = reader.take(2 if data[place] == 2 else 4), reader.take(2)
            items.kinds[number] = reader.take(4).to_bytes(4, "big")
    if len(items.kinds) > _MAX_ITEMS:
        raise ImageError(f"expected at most {_MAX_ITEMS} items in a file. Received {len(items.kinds)}.")


def _read_parts(data: bytes, start: int, end: int, idat: tuple[int, int], items: Items) -> None:
    version, reader = data[start], _Reader(data, start + 4, end)
    sizes = reader.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    for _ in range(count := reader.take(2 if version < 2 else 4)):
        if count > _MAX_ITEMS:
            raise ImageError(f"expected at most {_MAX_ITEMS} items in a file. Received {count}.")
        number = reader.take(2 if version < 2 else 4)
        method = reader.take(2) & 15 if version else 0
        _, base, parts = reader.take(2), reader.take(base_size), []
        for _ in range(reader.take(2)):
            reader.take(index_size)
            place, length = base + reader.take(offset_size), reader.take(length_size)
            place += idat[0] if method == 1 else 0
            if method > 1 or place > len(data):
                raise ImageError("the header is broken: expected items that lie in the file")
            parts.append((place, length or len(data) - place))
        items.parts[number] = parts


def _read_properties(data: bytes, start: int, end: int, items: Items) -> None:
    known: list[tuple[bytes, bytes]] = []
    for name, place, stop in walk_boxes(data, start, end):
        if name == b"ipco":
            known = [(inner, data[a:b]) for inner, a, b in walk_boxes(data, place, stop)]
    for name, place, stop in walk_boxes(data, start, end):
        if name != b"ipma":
            continue
        reader, is_wide = _Reader(data, place + 4, stop), data[place + 3] & 1
        for _ in range(reader.take(4)):
            number = reader.take(4 if data[place] else 2)
            for _ in range(reader.take(1)):
                index = reader.take(2) & 0x7FFF if is_wide else reader.take(1) & 0x7F
                if 0 < index <= len(known):
                    items.properties.setdefault(number, []).append(known[index - 1])


def _read_references(data: bytes, start: int, end: int, items: Items) -> None:
    size, total = 4 if data[start] else 2, 0
    for name, place, stop in walk_boxes(data, start + 4, end):
        reader = _Reader(data, place, stop)
        source = reader.take(size)
        targets = [reader.take(size) for _ in range(reader.take(2))]
        total += len(targets)
        if total > _MAX_ITEMS:
            raise ImageError(f"expected at most {_MAX_ITEMS} references between items")
        if name == b"dimg":
            items.made_of.setdefault(source, []).extend(targets)
        elif name == b"auxl" and targets:
            items.auxiliary[source] = targets[0]
        elif name == b"thmb":
            items.thumbnails.add(source)


def _data_of(data: bytes, items: Items, number: int) -> bytes:
    parts = items.parts.get(number, [])
    if sum(length for _, length in parts) > len(data):
        raise ImageError("the header is broken: expected items with bytes of their own")
    return b"".join(data[place : place + length] for place, length in parts)


def _shown(items: Items, codec: bytes, name: str) -> list[int]:
    """Items of coded pictures that the primary image and its transparency are made of, as often as they are."""
    shown, targets = [], [items.primary]
    targets += [number for number, of in items.auxiliary.items() if of == items.primary]
    for number in targets:
        kind = items.kinds.get(number, b"")
        cells = items.made_of.get(number, []) if kind in (b"grid", b"iden") else [number]
        if (kind not in (codec, b"grid", b"iden") or any(items.kinds.get(cell) != codec for cell in cells)) and (
            number == items.primary
        ):
            kinds = {items.kinds.get(cell, b"?") for cell in (number, *cells)} - {codec, b"grid", b"iden"}
            wrong = ", ".join(sorted(kind.decode("latin-1") for kind in kinds)) or "an overlay"
            raise ImageError(f"expected {name} of {codec.decode()} pictures. Received {wrong}: {_WAY_OUT}.")
        shown += [cell for cell in cells if items.kinds.get(cell) == codec]
        # The transparency of a grid may be that of its cells.
        shown += [n for cell in cells if cell != number for n, of in items.auxiliary.items() if of == cell]
    return shown


def _sum_up(items: Items, sizes: list[tuple[int, int, int]], seconds: float, frames: int) -> Demand:
    """Args: sizes: width, height and number of the pictures that are decoded."""
    width, height = items.size(items.primary)
    largest = max([(w * h, w, h) for w, h, _ in sizes], default=(0, 0, 0))
    if largest[1] >= width + _PADDING or largest[2] >= height + _PADDING:  # a decoder makes room for it
        width, height = largest[1:]
    visits = sum(w * h * count for w, h, count in sizes)
    extra = largest[0] * _PIXEL_BYTES if len(sizes) > 1 else 0
    because = f"{sum(count for *_, count in sizes)} coded pictures"
    return Demand(width, height, _PIXEL_BYTES, 4, extra, visits * seconds, because, frames)


# AVIF


class _Bits:
    """Bits of a header, the highest of each byte first."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ImageError("the header is broken: it ends too early")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """An Exp-Golomb code; AV1's uvlc is the same."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ImageError("the header is broken: expected a number")
        return (1 << zeros) - 1 + self.take(zeros)


def read_avif(data: bytes) -> Demand:
    if data[8:12] == b"avis":
        raise ImageError(f"expected AVIF of a still picture. Received a sequence: {_WAY_OUT}.")
    items = read_items(data)
    sizes = [_read_av1(_data_of(data, items, number), items.size(number)) for number in _shown(items, b"av01", "AVIF")]
    return _sum_up(items, sizes, _AV1_SECONDS, 1)


def _read_av1(data: bytes, stated: tuple[int, int]) -> tuple[int, int, int]:
    """Largest width and height, and number of frames, of the coded data of an item."""
    width, height, frames, place, is_told = *stated, 0, 0, False
    while place < len(data):
        kind, has_extension, has_size = data[place] >> 3 & 15, data[place] & 4, data[place] & 2
        place += 2 if has_extension else 1
        length = shift = 0
        while has_size:
            length |= (data[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if data[place - 1] < 128 or shift > 56:
                break
        length = length if has_size else len(data) - place
        if kind == 1:
            across, down = _read_sequence(data[place : place + min(length, 512)])
            width, height, is_told = max(width, across), max(height, down), True
        frames += kind in (3, 6)
        place += length
    if not is_told:
        raise ImageError("the header is broken: expected a sequence header of AV1")
    return width, height, max(frames, 1)


def _read_sequence(content: bytes) -> tuple[int, int]:
    """Width and height of the sequence header of AV1."""
    bits = _Bits(content)
    bits.take(4)
    if bits.take(1):  # reduced, of a still picture
        bits.take(5)
    else:
        delay = 0
        if bits.take(1):  # timing
            bits.take(64)
            if bits.take(1):
                bits.golomb()
            if bits.take(1):
                delay = bits.take(5) + 1
                bits.take(42)
        has_display_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay and bits.take(1):
                bits.take(2 * delay + 1)
            if has_display_delay and bits.take(1):
                bits.take(4)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


# HEIC


def read_heic(data: bytes) -> Demand:
    items = read_items(data)
    sizes = [_read_hevc(data, items, number) for number in _shown(items, b"hvc1", "HEIC")]
    parts = {*items.auxiliary, *items.thumbnails, *(cell for cells in items.made_of.values() for cell in cells)}
    pictures = [n for n, kind in items.kinds.items() if kind in (b"hvc1", b"grid") and n not in parts]
    return _sum_up(items, sizes, _HEVC_SECONDS, max(len(pictures), 1))


def _read_hevc(data: bytes, items: Items, number: int) -> tuple[int, int, int]:
    """Largest width and height, and number of pictures, of the coded data of an item."""
    width, height = items.size(number)
    found = [content for name, content in items.properties.get(number, ()) if name == b"hvcC"]
    if not found:
        raise ImageError("the header is broken: expected a configuration of HEVC")
    config, place = found[0], 23
    for _ in range(config[22]):
        (count,) = struct.unpack_from(">H", config, place + 1)
        kind, place = config[place] & 63, place + 3
        for _ in range(count):
            (length,) = struct.unpack_from(">H", config, place)
            if kind == 33:
                across, down = _read_sps(config[place + 2 : place + 2 + length])
                width, height = max(width, across), max(height, down)
            place += 2 + length
    size, place, pictures, content = (config[21] & 3) + 1, 0, 0, _data_of(data, items, number)
    while place + size + 2 < len(content):
        length = int.from_bytes(content[place : place + size], "big")
        kind = content[place + size] >> 1 & 63
        if kind == 33:
            raise ImageError(f"expected sizes in the header. Received HEIC with sizes in its pictures: {_WAY_OUT}.")
        pictures += kind < 32 and content[place + size + 2] >> 7
        place += size + length
    return width, height, max(pictures, 1)


def _read_sps(unit: bytes) -> tuple[int, int]:
    """Width and height of a sequence parameter set, which is H.265's sequence header."""
    bits = _Bits(unit[2:200].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # a flag; profile, and level
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.golomb()
    if bits.golomb() == 3:  # planes apart
        bits.take(1)
    return bits.golomb(), bits.golomb()


# What stands beside the pixels


def read_depth(data: bytes) -> int:
    """Bits per channel of the primary image."""
    items = read_items(data)
    if len(pixi := items.first(b"pixi")) > 5:
        return max(pixi[5:])
    if len(config := items.first(b"av1C")) > 2:
        return 8 + (config[2] >> 6 & 1) * 2 + (config[2] >> 5 & 1) * 2
    config = items.first(b"hvcC")
    return 8 + (config[17] & 7) if len(config) > 17 else 8


def read_coding(data: bytes) -> tuple[int, int] | None:
    """Primaries and transfer function of the colors (H.273) if both are stated."""
    items = read_items(data)
    for number in (items.primary, *items.made_of.get(items.primary, ())[:1]):
        for name, content in items.properties.get(number, ()):
            if name == b"colr" and content[:4] == b"nclx" and len(content) >= 10:
                primaries, transfer = struct.unpack_from(">HH", content, 4)
                return None if 2 in (primaries, transfer) or max(primaries, transfer) > 255 else (primaries, transfer)
    return None
