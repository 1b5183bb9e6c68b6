"""Small image files that cost a decoder much, written byte by byte, and what decoding one costs."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 1 << 20


def zeros(count: int) -> bytes:
    """A zlib stream of ``count`` zero bytes, made without compressing them: a block that repeats itself."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    last = rest.compress(bytes(count % BLOCK)) + rest.flush()
    return b"\x78\xda" + block * (count // BLOCK) + last + struct.pack(">HH", count % 65521, 1)


def bits(groups: Iterable[tuple[int, int]]) -> bytes:
    """(value, number of bits) each, the highest bit first, filled up with ones."""
    text = "".join(f"{value:0{count}b}" for value, count in groups)
    return bytes(int(text[n : n + 8].ljust(8, "1"), 2) for n in range(0, len(text), 8))


# PNG


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int,
    height: int,
    depth: int = 8,
    color: int = 2,
    interlaced: bool = False,
    chunks: bytes = b"",
    end: bytes = b"",
) -> bytes:
    """All black, with ``chunks`` before the pixels and ``end`` after them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    sizes = [(width, height)]
    if interlaced:  # Adam7
        grid = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in grid]
    raw = sum(down * (1 + (across * channels * depth + 7) // 8) for across, down in sizes if across)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced)))
    palette = chunk(b"PLTE", bytes(6)) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunks + chunk(b"IDAT", zeros(raw)) + end + chunk(b"IEND", b"")


# TIFF and EXIF


def tiff(tags: list[tuple[int, int, list[int]]], content: bytes = b"", big: bool = False, repeat: int = 1) -> bytes:
    """A TIFF of ``tags`` (number, type 3, 4 or 16, values), each ``repeat`` times; ``content`` begins at byte 16."""
    sizes, letters = {3: 2, 4: 4, 16: 8}, {3: "H", 4: "I", 16: "Q"}
    inline, place = 8 if big else 4, 16 + len(content) + len(content) % 2
    values, entries = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{letters[kind]}", *numbers)
        if len(packed) > inline:
            where = struct.pack("<Q" if big else "<I", place + len(values))
            values += packed + bytes(len(packed) % 2)
        else:
            where = packed.ljust(inline, b"\0")
        assert len(packed) == sizes[kind] * len(numbers)
        entries += (struct.pack("<HHQ" if big else "<HHI", tag, kind, len(numbers)) + where) * repeat
    count = struct.pack("<Q" if big else "<H", len(tags) * repeat)
    start = place + len(values)
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHIQ", b"II", 42, start, 0)
    return head + content.ljust(place - 16, b"\0") + values + count + entries + bytes(8 if big else 4)


def shared_tags(count: int, size: int) -> bytes:
    """An EXIF block of ``count`` tags whose values are all the same ``size`` bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + n, 7, size, 0) for n in range(count))
    block = struct.pack("<2sHIH", b"II", 42, 8, count) + entries + bytes(4)
    return block.ljust(size, b"\0")


# JPEG


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg(
    width: int, height: int, scans: int = 0, components: int = 1, before: bytes = b"", between: bytes = b""
) -> bytes:
    """A progressive JPEG, all gray: a scan of DC values, then ``scans`` that refine coefficients which are all zero.

    Args:
        before: segments before the frame's.
        between: segments between the scans.
    """
    blocks = -(-width // 8) * -(-height // 8)
    frame = struct.pack(">BHHB", 8, height, width, components)
    frame += b"".join(bytes([n + 1, 0x11, 0]) for n in range(components))
    data = b"\xff\xd8" + before + segment(0xDB, bytes([0]) + b"\x01" * 64) + segment(0xC2, frame)
    data += segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00")  # one DC code, of one bit: no difference
    data += segment(0xC4, b"\x10\x01" + bytes(15) + b"\xe0")  # one AC code, of one bit: 2 ** 14 and 14 bits of blocks
    numbers = b"".join(bytes([n + 1, 0]) for n in range(components))
    data += segment(0xDA, bytes([components]) + numbers + b"\x00\x00\x01") + bytes(-(-blocks * components // 8))
    runs = bits([(16_383, 15)] * (blocks // 32_767 + 1)).replace(b"\xff", b"\xff\x00")
    refining = segment(0xDA, b"\x01\x01\x00\x01\x3f\x10") + runs
    return data + (between + refining) * scans + b"\xff\xd9"


# Others


def webp(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A lossless WebP, all black: five prefix codes of one symbol each, so that pixels take no bits (RFC 9649)."""
    value, place = 0, 0
    for number, count in [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 4), (0, 3), *[(1, 4)] * 5]:
        value, place = value | number << place, place + count
    content = value.to_bytes(-(-place // 8) + 8, "little")
    body = b"VP8L" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    if chunks:
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size + body + chunks
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def gif(width: int, height: int, comments: bytes = b"", frame: tuple[int, int] = (1, 1)) -> bytes:
    """``comments``: blocks of a comment, each with its length."""
    extension = b"\x21\xfe" + comments + b"\0" if comments else b""
    image = b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + extension + image + b"\x3b"


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<III", 54 + 1024 + len(runs), 0, 54 + 1024) + head + bytes(1024) + runs


def tiff_and_fli(tiff_side: int, fli_side: int) -> bytes:
    """A TIFF whose first 16 bytes are also those of a FLI animation."""
    start = 0x1AF12
    data = bytearray(struct.pack("<2sHIHH", b"II", 42, start, fli_side, fli_side).ljust(start + tiff_side**2, b"\0"))
    data[128:134] = struct.pack("<IH", 16, 0xF1FA)  # a frame of no chunks
    tags = [(256, tiff_side), (257, tiff_side), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, tiff_side)]
    tags.append((279, tiff_side**2))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return bytes(data[:start]) + struct.pack("<H", len(tags)) + entries + bytes(4)


# What decoding costs

_CHILD = """
import json, os, resource, sys, warnings
warnings.simplefilter("ignore")
from trainer.images import budget, mask_files, pictures, rgb
from masks import codec
def read_mask(data):
    try:
        return mask_files.read_mask(data, mask_files.MaskReading(hole="black")).mask
    except mask_files.MaskError:  # it was decoded, and looked at
        return "(ambiguous)"
calls = {
    "rgb": rgb.decode_rgb,
    "picture": pictures.decode,
    "mask": read_mask,
    "header": rgb.read_header,
    "record": codec.decode_mask,
    "file": budget.read_file,
}
for line in sys.stdin:
    call, path = json.loads(line)
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        data = path if call == "file" else open(path, "rb").read()
        begin, time = (resource.getrusage(resource.RUSAGE_SELF)[n] for n in (2, 0))
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak that the parent had
        try:
            found = calls[call](data)
            text = str(getattr(found, "shape", None) or getattr(getattr(found, "pixels", None), "shape", None) or found)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        peak = int(status["VmHWM"].split()[0]) // 1000
        print(json.dumps([text[:300], peak, resource.getrusage(resource.RUSAGE_SELF)[0] - time]), flush=True)
        os._exit(0)
    _, code = os.waitpid(child, 0)
    if code:
        print(json.dumps([f"killed: {code}", 1 << 20, 60.0]), flush=True)
"""


def cost(cases: list[tuple[str, Path | str]]) -> list[tuple[str, int, float]]:
    """What came of each (call, file): its result or error, the peak of memory in MB, and seconds of CPU.

    Args:
        cases: calls are ``rgb``, ``picture``, ``mask``, ``header``, ``record`` or ``file``.
    """
    lines = "".join(json.dumps([call, str(path)]) + "\n" for call, path in cases)
    done = subprocess.run([sys.executable, "-c", _CHILD], input=lines, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
