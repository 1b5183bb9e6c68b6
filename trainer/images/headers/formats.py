"""PNG, JPEG, WebP, GIF, BMP and PPM; and which parser a file belongs to."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from trainer.errors import ImageError
from trainer.images import tiff_tags
from trainer.images.headers import heif, jpeg2000, tiff
from trainer.images.headers.demand import PIXEL_SECONDS, VISIT_SECONDS, Demand

# What Pillow does in Python, for each segment, chunk or strip, and for each byte or value it reads there.
_STEP_SECONDS, _VALUE_SECONDS = 5e-6, 0.5e-6
_MAX_METADATA = 64 << 20  # bytes before the pixels of a JPEG
_MAX_EXIF = 16 << 20  # Pillow puts blocks together one by one, in quadratic time
_MAX_STEPS = 100_000  # in counting frames
_MAX_COMMENTS = 1 << 20  # the same for the blocks of a GIF, of 255 bytes each


def format_of(data: bytes) -> str | None:
    """Pillow's name of the format whose signature the file begins with, None if it is none of ours."""
    return next((name for name, (signature, _) in _FORMATS.items() if signature.match(data)), None)


def other_format_of(data: bytes) -> str | None:
    """Name of a format that is not read, None if the bytes are of none that is known."""
    return next((name for name, signature in _OTHER_NAMES if signature.match(data)), None)


def read_demand(data: bytes, format: str) -> Demand:
    """What decoding a file of ``format`` takes. Raises `ImageError` for a header that no decoder needs to see."""
    try:
        return _FORMATS[format][1](data)
    except (struct.error, IndexError):
        raise ImageError("the header is broken: it ends too early") from None


# PNG


def _read_png(data: bytes) -> Demand:
    """Specification: PNG, third edition, section 5."""
    length, name, width, height, bits, color = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, name) != (13, b"IHDR"):
        raise ImageError("the header is broken: expected IHDR first")
    channels = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}.get(color, 4)  # palettes may have transparency
    is_wide = bits == 16
    stored = 4 if color in (2, 4, 6) else 2 if is_wide else 1
    row = width * channels * 2
    place, chunks, frames, has_key = 8, 0, 0, False
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        place, chunks = place + 12 + length, chunks + 1
        frames, has_key = frames + (name == b"fcTL"), has_key or name == b"tRNS"
        if name == b"IEND" or chunks * _STEP_SECONDS > 60:
            break
    own = (channels + (has_key and color in (0, 2))) * (2 if is_wide else 1)  # a transparent color becomes alpha
    return Demand(
        width,
        height,
        stored,
        8 if is_wide and color == 4 else own,  # OpenCV reads gray and alpha as four channels
        extra=4 * row,
        seconds=chunks * _STEP_SECONDS + width * height * PIXEL_SECONDS * (3 if is_wide else 1),
        because=f"{chunks} chunks",
        frames=max(frames, 1),
    )


# JPEG

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE, _JPEG_ARITHMETIC = (0xC2, 0xC6, 0xCA, 0xCE), range(0xC9, 0xD0)
_JPEG_BARE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_SOS, _EOI = 0xDA, 0xD9
_JPEG_START = re.compile(rb"\xff[^\x00\xff]")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN_PIXELS = 20_000  # for starting a scan


class _Frame(NamedTuple):
    """Of a JPEG: its kind (a marker), size, and the part of the pixels that each component has, by its number.

    And how many pictures are in the file, which may have others behind the first.
    """

    kind: int
    width: int
    height: int
    parts: dict[int, float]
    pictures: int = 1


def _read_jpeg(data: bytes) -> Demand:
    """Specification: ITU-T T.81, annex B; markers are found as libjpeg finds them."""
    frame, scan = _read_jpeg_header(data)
    pixels = frame.width * frame.height
    in_first = data[scan + 2]
    is_buffered = frame.kind in _JPEG_PROGRESSIVE or in_first < len(frame.parts)
    visit = VISIT_SECONDS * (10 if frame.kind in _JPEG_ARITHMETIC else 1)
    # Every scan has this pair of bytes; other things may have it, too.
    most = data.count(b"\xff\xda", scan - 2) if is_buffered else 1
    scans, visits = most, most * (max(sum(frame.parts.values()), 1) * pixels + _SCAN_PIXELS)
    if visits * visit > 1:
        scans, visits = _count_scans(data, scan, frame, limit=600 / visit)
    components = len(frame.parts)
    blocks = sum(frame.parts.values()) * (frame.width + 32) * (frame.height + 32)
    return Demand(
        frame.width,
        frame.height,
        4 if components > 1 else 1,
        3 if components > 1 else 1,
        extra=2 * math.ceil(blocks) if is_buffered else 0,  # a coefficient has two bytes
        seconds=visits * visit + pixels * PIXEL_SECONDS,
        because=f"{scans} scans",
        frames=frame.pictures,
    )


def _read_jpeg_header(data: bytes) -> tuple[_Frame, int]:
    """The only frame, and where the segment of the first scan begins."""
    frame, metadata, junk, place, exif, pictures = None, 0, 0, 2, b"", 1
    while True:
        # Pillow takes half a microsecond for each byte between segments.
        found = _JPEG_START.search(data, place, place + _MAX_COMMENTS - junk)
        if found is None:
            raise ImageError("the header is broken: expected a marker")
        junk, place, marker = junk + found.end() - place - 2, found.end(), data[found.end() - 1]
        if marker in _JPEG_BARE:
            junk += 2
        elif marker == _SOS and frame is not None:
            break
        elif marker in (_SOS, _EOI):
            raise ImageError("the header is broken: expected a frame before the first scan")
        else:
            (length,) = struct.unpack_from(">H", data, place)
            segment, place, metadata = data[place + 2 : place + length], place + length, metadata + length
            if marker in _JPEG_FRAMES:
                if frame is not None:
                    raise ImageError("the header is broken: expected one frame. Received two.")
                frame = _read_frame(marker, segment)
            elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
                exif += segment[6:]
            elif marker == 0xE2 and segment.startswith(b"MPF\0"):
                pictures = max(_count_pictures(segment[4:]), 1)
        if metadata > _MAX_METADATA or len(exif) > _MAX_EXIF:
            raise ImageError(f"expected at most {_MAX_METADATA >> 20} MB of metadata, {_MAX_EXIF >> 20} of them EXIF")
    tiff_tags.read_tags(exif)
    return frame._replace(pictures=pictures), place


def _count_pictures(block: bytes) -> int:
    """Of a Multi-Picture Format (CIPA DC-007) index, without previews of the first."""
    if tiff_tags.read_tags(block) is None:
        return 1
    entries = b"".join(entry.value for entry in tiff_tags.read_entries(block, numbers=(0xB002,)))
    order = "<" if block[:2] == b"II" else ">"
    kinds = [struct.unpack_from(order + "I", entries, n)[0] & 0xFFFFFF for n in range(0, len(entries) - 15, 16)]
    return sum(kind >> 16 != 1 for kind in kinds)


def _read_frame(marker: int, segment: bytes) -> _Frame:
    bits, height, width, components = struct.unpack_from(">BHHB", segment)
    if bits != 8:
        raise ImageError(f"expected JPEG of 8 bits per channel. Received {bits}: convert it to PNG or TIFF of 16 bits.")
    layout = [segment[n : n + 2] for n in range(6, 6 + 3 * components, 3)]
    if not layout or len(layout[-1]) < 2:
        raise IndexError
    areas = [max(sampling >> 4, 1) * max(sampling & 15, 1) for _, sampling in layout]
    most = max(sampling >> 4 for _, sampling in layout) * max(sampling & 15 for _, sampling in layout)
    numbers = [number for number, _ in layout]
    return _Frame(marker, width, height, dict(zip(numbers, (area / max(most, 1) for area in areas), strict=True)))


def _count_scans(data: bytes, place: int, frame: _Frame, limit: float) -> tuple[int, float]:
    """Scans up to the end of the image, and the pixels they look at; up to ``limit``."""
    scans, visits = 0, 0.0
    marker: int | None = _SOS  # its segment begins at place
    while marker is not None and marker != _EOI and visits < limit:
        end = place + struct.unpack_from(">H", data, place)[0] if place + 2 <= len(data) else len(data)
        if marker == _SOS:
            scanned = data[place + 3 : end - 3 : 2]
            visits += sum(frame.parts.get(number, 1.0) for number in scanned) * frame.width * frame.height
            visits, scans = visits + _SCAN_PIXELS, scans + 1
        found = _MARKER.search(data, end)
        marker, place = (data[found.end() - 1], found.end()) if found else (None, end)
    return scans, visits


# WebP


def _read_webp(data: bytes) -> Demand:
    """Specification: RFC 9649."""
    kind = data[12:16]
    if kind == b"VP8X":
        sides = [int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27)]
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        sides = [(bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1]
    else:
        sides = [side & 0x3FFF for side in struct.unpack_from("<HH", data, 26)]
    if len(data) < 30:
        raise IndexError
    width, height = sides
    # Two canvases of Pillow's decoder, the bytes that it returns, its pixels, and what the codec itself holds.
    seconds = 3 * width * height * PIXEL_SECONDS
    return Demand(width, height, 16, 4, extra=len(data), seconds=seconds, frames=_count_webp(data))


def _count_webp(data: bytes) -> int:
    place, frames = 12, 0
    for _ in range(_MAX_STEPS):
        if place + 8 > len(data):
            break
        frames += data[place : place + 4] == b"ANMF"
        (length,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + length + length % 2
    return max(frames, 1)


# GIF


def _read_gif(data: bytes) -> Demand:
    """Specification: GIF89a; the first frame enlarges the screen, as in Pillow."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    start = place = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    while data[place] != 0x2C:
        if data[place] == 0x3B:
            raise ImageError("the header is broken: expected a frame")
        place += 1
        if data[place - 1] == 0x21:
            place += 1
            while data[place]:
                place += data[place] + 1
                if place - start > _MAX_COMMENTS:
                    raise ImageError(f"expected at most {_MAX_COMMENTS >> 20} MB of metadata before the first frame")
            place += 1
        if place - start > _MAX_COMMENTS:
            raise ImageError(f"expected at most {_MAX_COMMENTS >> 20} MB of metadata before the first frame")
    left, top, across, down = struct.unpack_from("<HHHH", data, place + 1)
    width, height = max(width, left + across), max(height, top + down)
    return Demand(width, height, 8, 4, seconds=width * height * PIXEL_SECONDS, frames=_count_gif(data, place))


def _count_gif(data: bytes, place: int) -> int:
    """Frames from the first one on, which is at ``place``."""
    frames, is_block = 0, False
    for _ in range(_MAX_STEPS):
        head = data[place : place + 10]
        if not head:
            break
        if is_block:  # of an extension or of pixels; one without bytes is the last
            place, is_block = place + 1 + head[0], head[0] > 0
        elif head[0] == 0x21:
            place, is_block = place + 2, True
        elif head[0] == 0x2C and len(head) == 10:
            frames, flags, is_block = frames + 1, head[9], True
            place += 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)
        else:
            break
    return max(frames, 1)


# BMP


def _read_bmp(data: bytes) -> Demand:
    """Format: Microsoft's BITMAPCOREHEADER, BITMAPINFOHEADER and later ones."""
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", data, 18)
    height, extra, seconds, because = abs(height), 0, 0.0, ""
    if compression in (1, 2):  # Pillow's decoder of runs is Python; one command of it may skip 255 rows
        extra = 2 * (width * height + 256 * width)
        seconds, because = len(data) * _VALUE_SECONDS * 2 + width * height * 100e-9, "runs of pixels"
    stored = 4 if bits > 8 else 1
    return Demand(width, height, stored, 4, extra, seconds + width * height * PIXEL_SECONDS, because)


# PPM

_PPM_TOKEN = re.compile(rb"\s*(?:#[^\r\n]*[\r\n]\s*)*([0-9]{1,10})(?=[\s#])")


def _read_ppm(data: bytes) -> Demand:
    """Format: Netpbm's pbm, pgm and ppm."""
    kind, place, values = data[1] - ord("0"), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        if (found := _PPM_TOKEN.match(data, place, place + 4096)) is None:
            raise ImageError("the header is broken: expected numbers")
        place = found.end()
        values.append(int(found[1]))
    width, height = values[:2]
    channels = 3 if kind in (3, 6) else 1
    extra, seconds, because = 0, width * height * PIXEL_SECONDS, ""
    most = values[2] if values[2:] else 1
    if kind < 4 or most not in (1, 255, 65_535):  # Pillow's decoder is Python
        extra = 2 * width * height * channels * (4 if most > 255 else 1) + (64 << 20)
        seconds += width * height * channels * _VALUE_SECONDS
        because = "values that only Python decodes"
    if kind < 4:  # it copies a megabyte for each comment
        seconds += len(data) * 10e-9 + data.count(b"#") * 100e-6
    return Demand(width, height, 4 if channels == 3 or most > 255 else 1, channels, extra, seconds, because)


_FORMATS: dict[str, tuple[re.Pattern[bytes], Callable[[bytes], Demand]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), _read_jpeg),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), _read_png),
    "WEBP": (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), _read_webp),
    "TIFF": (re.compile(rb"II[*+]\x00|MM\x00[*+]"), tiff.read_tiff),
    "GIF": (re.compile(rb"GIF8[79]a"), _read_gif),
    "BMP": (re.compile(rb"BM"), _read_bmp),
    "PPM": (re.compile(rb"P[1-6][\s#]"), _read_ppm),
    "JPEG2000": (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), jpeg2000.read_jpeg2000),
    "AVIF": (re.compile(rb".{4}ftyp(avi[fs]|m[is]f1.{4}(.{4}){0,15}?avif)", re.DOTALL), heif.read_avif),
    "HEIF": (re.compile(rb".{4}ftyp(hei[cxms]|hev[cx]|m[is]f1)", re.DOTALL), heif.read_heic),
}
# Others by name, so that the reason is true.
_OTHERS = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "Photoshop": rb"8BPS",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "PFM or PAM": rb"P[fF7]\s",
    "camera raw": rb".{4}ftypcrx |FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR",
    "JPEG XR": rb"II\xbc",
    "FITS": rb"SIMPLE  =",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "ICO": rb"\0\0[\x01\x02]\0.\0",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]{0,200}>\s*)?(<!--.{0,1000}?-->\s*)?(<!DOCTYPE svg[^>]{0,300}>\s*)?<svg\b",
    "PDF": rb"%PDF-",
    "video": rb".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ",
    "ZIP": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b\x08",
}
_OTHER_NAMES = [(name, re.compile(pattern, re.DOTALL)) for name, pattern in _OTHERS.items()]
