"""What stands in an image file beside its pixels and stays true of the inpainted ones.

Colors (profile, gAMA, cHRM, sRGB, cICP, sBIT and HDR levels), density, EXIF, XMP and texts are kept. What is not true
any more is not: thumbnails, previews, makers' notes, an orientation that has been applied, a profile of inks that have
become RGB, and XMP that holds pictures or speaks of files that were appended.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from trainer.images import color, exif, tiff_tags
from trainer.images.exif import Exif

_COLOR_CHUNKS = {b"gAMA", b"cHRM", b"sRGB", b"cICP", b"sBIT", b"mDCV", b"cLLI", b"mDCv", b"cLLi"}
_TEXT_CHUNKS = {b"tEXt", b"zTXt", b"iTXt"}
_XMP_KEY = b"XML:com.adobe.xmp"
_MAX_SEGMENT = 65_000  # bytes of EXIF, XMP or a comment in a JPEG, which has 16 bits for the length of each
_MAX_TEXT = 1 << 20  # characters that a compressed text may have to become a comment
_SRGB_CICP = {(primaries, transfer) for primaries in (1, 2) for transfer in (1, 2, 6, 13)}
# Pictures in XMP, and words on second pictures, gain maps, depth, sound or film in the same file.
_FOREIGN_XMP = re.compile(rb"xmpGImg:|xmp:Thumbnails|GImage:|GDepth:|GAudio:|GCamera:|hdrgm:|HDRGainMap:|Container:")
_INCH = 0.0254  # meters
_SPACES = {1: (b"GRAY", b"RGB "), 2: (b"GRAY", b"RGB "), 3: (b"RGB ",), 4: (b"RGB ",)}  # of profiles, by channels


class Density(NamedTuple):
    """Pixels across and down, for each meter; or their ratio alone."""

    across: float
    down: float
    is_absolute: bool


@dataclass(frozen=True)
class Metadata:
    """What an image file keeps beside its pixels.

    Attributes:
        orientation: EXIF's, 1 to 8: how viewers turn the pixels; 1 is upright.
        icc: color profile of the pixels, if the file has one.
        format: of the file, one of `pictures.READABLE`; empty for pixels that do not come from a file.
        exif: of the EXIF block or the TIFF, see `exif.read`; the orientation is not in it.
        xmp: packet of XMP; empty without one.
        chunks: PNG's chunks of colors and texts, name and content, which other formats' texts and colors become.
        density: of the pixels; None if square and of no unit.
        frames: images or pages in the file, of which this is the first.
        notes: what was left out or could not be kept, for people.
    """

    orientation: int = 1
    icc: bytes | None = None
    format: str = ""
    exif: Exif | None = None
    xmp: bytes = b""
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    density: Density | None = None
    frames: int = 1
    notes: tuple[str, ...] = ()

    @property
    def coding(self) -> tuple[int, ...] | None:
        """cICP's primaries, transfer function, matrix and range, if they are others than those of sRGB."""
        found = dict(self.chunks).get(b"cICP", b"")
        return tuple(found) if len(found) == 4 and tuple(found[:2]) not in _SRGB_CICP else None


# Reading


class Change(NamedTuple):
    """What became of the pixels of a file: their size as they are stored now, and their form.

    Attributes:
        channels, bits: of the pixels now.
        is_converted: whether they are sRGB now, whatever the file says.
        is_turned: whether the file's orientation has been applied.
    """

    width: int
    height: int
    channels: int
    bits: int
    is_converted: bool = False
    is_turned: bool = False


def of_tiff(data: bytes, change: Change, notes: tuple[str, ...] = ()) -> Metadata:
    """Of a TIFF, whose orientation has been applied."""
    tags = {entry.number: entry.value for entry in tiff_tags.read_entries(data, numbers=(exif.XMP, exif.ICC))}
    block = exif.read(data, change.width, change.height, change.is_converted)
    density = _of_exif(block)
    if density and change.is_turned and orientation_of(data) >= 5:
        density = Density(density.down, density.across, density.is_absolute)
        block = (
            exif.with_resolution(block, density.across * _INCH, density.down * _INCH) if density.is_absolute else block
        )
    raw = Metadata(icc=tags.get(exif.ICC), format="TIFF", exif=block, xmp=tags.get(exif.XMP, b""), density=density)
    return _settle(dataclasses.replace(raw, notes=notes), change)


def orientation_of(block: bytes) -> int:
    """The orientation that a TIFF or an EXIF block states, 1 to 8; 1 if it states none."""
    tags = tiff_tags.read_tags(block)
    value = tags.first(exif.ORIENTATION, 1) if tags else 1
    return value if value in range(1, 9) else 1


def of_image(
    image: Image.Image, data: bytes, orientation: int, change: Change, notes: tuple[str, ...] = ()
) -> Metadata:
    """Of a loaded image that is no TIFF.

    Args:
        orientation: that viewers have to apply.
    """
    info = image.info
    block = exif.read(exif_block(image), change.width, change.height, change.is_converted)
    density = _of_exif(block)
    chunks: list[tuple[bytes, bytes]] = []
    if image.format == "PNG":
        chunks = list(_kept_chunks(data, change))
        density = _of_phys(dict(png_chunks(data)).get(b"pHYs", b"")) or density
    elif "jfif_density" in info:
        across, down = info["jfif_density"]
        density = _density(across, down, {1: 2, 2: 3}.get(info.get("jfif_unit", 0), 1)) or density
    elif density is None and "dpi" in info:
        across, down = info["dpi"]
        density = _density(across, down, 2)
    if image.format != "PNG" and (comment := info.get("comment")):
        chunks.append(_text_chunk(b"Comment", comment))
    xmp = info.get("xmp") or b""
    raw = Metadata(
        orientation, info.get("icc_profile"), str(image.format), block, xmp, tuple(chunks), density, notes=notes
    )
    return _settle(raw, change)


def exif_block(image: Image.Image) -> bytes:
    """The EXIF block of an image that is no TIFF, without the prefix; empty if it has none."""
    block = image.info.get("exif") or b""
    if not block and (raw := image.info.get("Raw profile type exif")):  # as ImageMagick writes it
        try:
            block = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return b""
    return block.removeprefix(b"Exif\0\0")


def _settle(raw: Metadata, change: Change) -> Metadata:
    """Metadata without what is not true of the pixels any more."""
    icc, notes = raw.icc, [*raw.notes]
    if icc and not change.is_converted and icc[16:20] not in _SPACES[change.channels]:
        notes.append(
            f"a color profile of {icc[16:20].decode('latin-1').strip()} that is not one of the pixels is left out"
        )
        icc = None
    xmp, said = _settle_xmp(raw.xmp, change)
    return dataclasses.replace(raw, icc=None if change.is_converted else icc, xmp=xmp, notes=(*notes, *said))


def _settle_xmp(xmp: bytes, change: Change) -> tuple[bytes, list[str]]:
    """The packet, true of the pixels, and what is to be said.

    An orientation in it alone turns nothing, as in browsers, and stays.
    """
    if not xmp or b"<" not in xmp or b"\0" in xmp:  # none, or not UTF-8
        return b"", []
    if found := _FOREIGN_XMP.search(xmp):
        return b"", [f"XMP is left out: it holds, or speaks of, other pictures ({found[0].decode().rstrip(':')})"]
    true = {b"exif:PixelXDimension": change.width, b"exif:PixelYDimension": change.height}
    true |= {b"tiff:ImageWidth": change.width, b"tiff:ImageLength": change.height}
    true |= {b"tiff:Orientation": 1} if change.is_turned else {}
    true |= {b"photoshop:ColorMode": 3, b"exif:ColorSpace": 1} if change.is_converted else {}
    for name, value in true.items():
        xmp = re.sub(b"(\\b" + name + rb"\s*=\s*[\"'])[^\"'<>]*", rb"\g<1>%d" % value, xmp)
        xmp = re.sub(b"(<" + name + rb">)[^<]*", rb"\g<1>%d" % value, xmp)
    for name in [b"xmpNote:HasExtendedXMP", *([b"photoshop:ICCProfile"] if change.is_converted else [])]:
        xmp = re.sub(rb"\s+" + name + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", b"", xmp)
        xmp = re.sub(b"<" + name + b">[^<]*</" + name + b">", b"", xmp)
    return xmp, []


# PNG's chunks


def coding_chunk(coding: tuple[int, int] | None) -> tuple[tuple[bytes, bytes], ...]:
    """The chunk of colors with such primaries and transfer function (H.273); none for those of sRGB."""
    return () if coding is None or coding in _SRGB_CICP else ((b"cICP", bytes([*coding, 0, 1])),)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks of a PNG other than those of pixels."""
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"IEND":
            return
        if name not in (b"IDAT", b"fdAT"):
            yield name, data[place + 8 : place + 8 + length]
        place += 12 + length


def _kept_chunks(data: bytes, change: Change) -> Iterator[tuple[bytes, bytes]]:
    for name, content in png_chunks(data):
        key = content.split(b"\0", 1)[0]
        if name == b"sBIT":
            colors = content[: 1 if change.channels < 3 else 3]
            alpha = content[len(colors) :][:1] or bytes([change.bits])
            yield name, colors + (alpha if change.channels in (2, 4) else b"")
        elif name in _COLOR_CHUNKS:
            yield name, content
        elif name in _TEXT_CHUNKS and key != _XMP_KEY and not key.lower().startswith(b"raw profile type"):
            yield name, content


def _text_chunk(key: bytes, text: bytes) -> tuple[bytes, bytes]:
    """A text of unknown encoding as a chunk."""
    text = text.replace(b"\0", b"").replace(b"\r\n", b"\n")
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        decoded = text.decode("latin-1")
    if decoded.isascii():
        return b"tEXt", key + b"\0" + decoded.encode()
    return b"iTXt", key + bytes(5) + decoded.encode()


def _read_text(name: bytes, content: bytes) -> tuple[str, str]:
    """(key, text) of a chunk; the text is empty if it is broken or long."""
    key, _, rest = content.partition(b"\0")
    is_packed, encoding = name == b"zTXt", "latin-1"
    if name == b"zTXt":
        rest = rest[1:]
    elif name == b"iTXt":
        is_packed, encoding = rest[:1] == b"\x01", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        text = zlib.decompressobj().decompress(rest, _MAX_TEXT) if is_packed else rest
    except zlib.error:
        text = b""
    return key.decode("latin-1"), text.decode(encoding, "replace") if len(text) < _MAX_TEXT else ""


# Density


def _density(across: float, down: float, unit: int) -> Density | None:
    """``unit`` is EXIF's: 2 inch, 3 centimeter, others none. None if the pixels are square and of no unit."""
    scale = {2: 1 / _INCH, 3: 100}.get(unit, 1)
    found = Density(float(across) * scale, float(down) * scale, unit in (2, 3))
    is_known = 0 < found.across < 1 << 31 and 0 < found.down < 1 << 31
    return found if is_known and (found.is_absolute or found.across != found.down) else None


def _of_exif(block: Exif | None) -> Density | None:
    found = block.resolution() if block else None
    return _density(*found) if found else None


def _of_phys(content: bytes) -> Density | None:
    if len(content) != 9:
        return None
    across, down, unit = struct.unpack(">IIB", content)
    found = _density(across, down, 1)
    return Density(across, down, True) if unit == 1 and across and down else found


# Writing


def chunks_of(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG of pixels with such metadata."""
    chunks = []
    if metadata.icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if block := exif_of(metadata):
        chunks.append((b"eXIf", block.removeprefix(b"Exif\0\0")))
    if metadata.density:
        across, down, is_absolute = metadata.density
        scale = 1 if is_absolute or (across.is_integer() and down.is_integer()) else 1000
        sides = [max(round(side * scale), 1) for side in (across, down)]
        if max(sides) < 1 << 31:
            chunks.append((b"pHYs", struct.pack(">IIB", *sides, int(is_absolute))))
    chunks += metadata.chunks
    if metadata.xmp:
        chunks.append((b"iTXt", _XMP_KEY + bytes(5) + metadata.xmp))
    return chunks


def exif_of(metadata: Metadata) -> bytes:
    """The EXIF block with the prefix that JPEG has before it; empty if there is nothing to say."""
    if metadata.exif is not None:
        return b"Exif\0\0" + exif.encode(metadata.exif, metadata.orientation)
    if metadata.orientation == 1:
        return b""
    block = Image.Exif()
    block[exif.ORIENTATION] = metadata.orientation
    return block.tobytes()


def options_of(metadata: Metadata, kind: str, channels: int) -> dict[str, Any]:
    """Pillow's options for saving such metadata as ``jpeg`` or ``webp``."""
    if kind == "webp" and metadata.density and metadata.density.is_absolute and _of_exif(metadata.exif) is None:
        dots = [side * _INCH for side in metadata.density[:2]]
        metadata = dataclasses.replace(metadata, exif=exif.with_resolution(metadata.exif, *dots))
    block = exif_of(metadata)
    if kind == "jpeg" and len(block) > _MAX_SEGMENT:
        block = exif_of(dataclasses.replace(metadata, exif=None))
    found = {"icc_profile": profile_of(metadata, channels < 3 and kind == "jpeg"), "exif": block, "xmp": metadata.xmp}
    if kind == "jpeg":
        found["xmp"] = metadata.xmp if len(metadata.xmp) < _MAX_SEGMENT else b""
        found["comment"] = _comment(metadata)
    return {name: value for name, value in found.items() if value}


def profile_of(metadata: Metadata, is_gray: bool) -> bytes | None:
    """The profile for a format that has no other way to say what the colors are; None for sRGB."""
    chunks = dict(metadata.chunks)
    if metadata.icc or b"sRGB" in chunks or b"cICP" in chunks:
        return metadata.icc
    gamma, points = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    curve = struct.unpack(">I", gamma)[0] if len(gamma) == 4 else 0
    places = struct.unpack(">8I", points) if len(points) == 32 and all(struct.unpack(">8I", points)[1::2]) else None
    if color.is_srgb(curve or color.SRGB_GAMMA, places):
        return None
    return color.make_profile(curve or color.SRGB_GAMMA, places, is_gray)


def _comment(metadata: Metadata) -> bytes:
    texts = [_read_text(name, content) for name, content in metadata.chunks if name in _TEXT_CHUNKS]
    lines = [text if key == "Comment" else f"{key}: {text}" for key, text in texts if text]
    return "\n".join(lines).encode()[:_MAX_SEGMENT]


def set_density(jpeg: bytes, density: Density | None) -> bytes:
    """A JPEG that begins with a JFIF segment, as libjpeg writes it, with its pixels' density."""
    if density is None or jpeg[2:11] != b"\xff\xe0\x00\x10JFIF\0":
        return jpeg
    sides = [round(side * _INCH) if density.is_absolute else round(side) for side in density[:2]]
    if not all(0 < side < 1 << 16 for side in sides):
        return jpeg
    return jpeg[:13] + struct.pack(">BHH", int(density.is_absolute), *sides) + jpeg[18:]
