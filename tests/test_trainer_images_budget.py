"""What small files may cost: each is decoded or refused in a process of its own, with memory and CPU measured."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import struct
import zlib

import bomb_files as bombs
import cv2
import numpy as np
import pytest
from bomb_files import chunk, gif, jpeg, png, segment, shared_tags, tiff, webp, zeros
from PIL import Image

from trainer.errors import ImageError
from trainer.images import MOST_PIXELS, budget, headers, rgb

SPARE = 150  # MB beside the pixels: the interpreter, the libraries, and the file itself
HUGE = 26_688
SHARED = shared_tags(4000, 1 << 20)


def tiff_of(side: int, content: bytes, *more: tuple[int, int, list[int]], big: bool = False, **changes) -> bytes:
    """A deflated RGB image of one strip, ``side`` pixels wide and high."""
    tags = {256: [side], 257: [side], 258: [8, 8, 8], 259: [8], 262: [2], 273: [16], 277: [3], 278: [side]}
    tags |= {279: [len(content)]} | {int(tag[1:]): values for tag, values in changes.items()}
    kinds = {258: 3, 259: 3, 262: 3, 277: 3}
    return tiff([*((tag, kinds.get(tag, 4), tags[tag]) for tag in sorted(tags)), *more], content, big)


def one_tile(side: int, big: bool = False) -> bytes:
    """16 x 16 pixels in one tile of ``side`` x ``side``."""
    content = zeros(side * side * 3)
    tags = [(256, 4, [16]), (257, 4, [16]), (258, 3, [8, 8, 8]), (259, 3, [8]), (262, 3, [2]), (277, 3, [3])]
    tags += [(322, 4, [side]), (323, 4, [side]), (324, 4, [16]), (325, 4, [len(content)])]
    return tiff(tags, content, big)


def behind_a_broken_tag(data: bytes) -> bytes:
    """A TIFF whose photometric interpretation has more values than there are bytes: the tiles' tags follow it."""
    place = data.index(struct.pack("<HHI", 262, 3, 1))
    return data[:place] + struct.pack("<HHI", 262, 3, 1 << 30) + data[place + 8 :]


def riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def profile_as_text(block: bytes) -> bytes:
    """ImageMagick's way to keep EXIF in a PNG."""
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


# Refused before anything is decoded. Name: (bytes, what the reason says)
REFUSED = {
    "16-bit RGBA PNG": (lambda: png(10_000, 10_000, 16, 6), "takes at most 1667 MB .* takes 24.. MB"),
    "interlaced": (lambda: png(10_000, 10_000, 16, 6, True), "takes at most 1667 MB"),
    "one row": (lambda: png(100_000_000, 1, 16, 6), "takes at most 1667 MB"),
    "1-bit PNG": (lambda: png(60_000, 60_000, 1, 0), "at most 100000000 pixels. Received 60000 x 60000"),
    "palette PNG": (lambda: png(60_000, 60_000, 1, 3), "at most 100000000 pixels. Received 60000 x 60000"),
    "chunks": (lambda: png(8, 8, chunks=chunk(b"prVt", b"") * 5_000_000), "takes at most 20 seconds"),
    "two headers": (
        lambda: png(8, 8, chunks=png(9000, 9000)[8:33]),
        "expected one size, 8 x 8. Received 9000 x 9000",
    ),
    "scans": (lambda: jpeg(8000, 8000, 5600), "takes at most 20 seconds .*5601 scans"),
    "scans behind a comment": (
        lambda: jpeg(8000, 8000, 5600, between=segment(0xFE, b"\xff\xd9")),
        "takes at most 20 seconds .*5601 scans",
    ),
    "two frames": (
        lambda: jpeg(8, 8, before=segment(0xC2, struct.pack(">BHHB", 8, 9000, 9000, 1) + b"\x01\x11\x00")),
        "expected one frame",
    ),
    "segments": (lambda: jpeg(8, 8, before=segment(0xE5, bytes(65_000)) * 1100), "at most 64 MB of metadata"),
    "EXIF segments": (
        lambda: jpeg(8, 8, before=segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 300),
        "16 of them EXIF",
    ),
    "EXIF of a JPEG": (
        lambda: jpeg(8, 8, before=b"".join(exif_segments(SHARED))),
        "expected tags with values of their own",
    ),
    "bytes between segments": (lambda: jpeg(8, 8, before=segment(0xE5, b"") + bytes(2 << 20)), "expected a marker"),
    "CMYK": (lambda: jpeg(9900, 9900, 200, 4), "takes at most 20 seconds"),
    "WebP": (lambda: webp(10_000, 10_000), "takes at most 1667 MB"),
    "animated WebP": (
        lambda: webp(16_384, 16_384, riff(b"ANIM", bytes(6)) + riff(b"ANMF", bytes(16)) * 100),
        "at most 100000000 pixels",
    ),
    "TIFF of one tile": (lambda: one_tile(HUGE), "takes at most 1667 MB .*1 tiles or strips of 26688 x 26688"),
    "BigTIFF of one tile": (lambda: one_tile(HUGE, big=True), "takes at most 1667 MB .*26688 x 26688"),
    "TIFF of tags": (lambda: tiff([(60_000, 4, [1])] * 60_000), "expected at most 4096 tags"),
    "BigTIFF of a million tags": (
        lambda: tiff([(256, 4, [16]), (257, 4, [16])], big=True, repeat=500_000),
        "expected at most 4096 tags",
    ),
    "TIFF of a tile behind a broken tag": (lambda: behind_a_broken_tag(one_tile(HUGE)), "1 tiles .* of 26688 x 26688"),
    "TIFF of two widths": (lambda: tiff_of(16, zeros(768), (256, 4, [9000])), "two of 256"),
    "TIFF of shared tags": (lambda: SHARED, "expected tags with values of their own"),
    "TIFF of shared strips": (
        lambda: tiff_of(1000, bytes(1 << 20), _278=[1], _273=[16] * 1000, _279=[1 << 20] * 1000),
        "expected tiles with bytes of their own",
    ),
    "TIFF of strips": (
        lambda: tiff_of(16, bytes(64), _257=[3_000_000], _278=[1], _273=[16] * 9, _279=[1] * 9),
        "takes at most 20 seconds",
    ),
    "LZMA": (lambda: tiff_of(16, bytes(64), _259=[34_925]), "expected a TIFF compression of .* Received 34925"),
    "GIF's comments": (lambda: gif(8, 8, (b"\xff" + bytes(255)) * 5000), "at most 1 MB of metadata"),
    "GIF's frame": (lambda: gif(8, 8, frame=(60_000, 60_000)), "at most 100000000 pixels. Received 60000 x 60000"),
    "BMP of runs": (
        lambda: bombs.bmp_of_runs(90_000_000, 1, b"\0\x02\0\xff" * 9),
        "takes at most 1667 MB",
    ),
    "BMP of short runs": (lambda: bombs.bmp_of_runs(9000, 9000, b"\x01\0" * 20_000_000), "takes at most 20 seconds"),
    "PPM's comments": (lambda: b"P3 " + b"#\n" * 20_000 + b"8 8 255 ", "expected numbers"),
    "PPM's comments in pixels": (lambda: b"P3 8 8 255 " + b"#\n" * 500_000, "takes at most 20 seconds"),
    "PPM that Python decodes": (lambda: b"P6 9000 9000 99 " + bytes(99), "takes at most 20 seconds"),
}
# Decoded, in little memory: what the libraries guard themselves, and what looks like a bomb and is none.
DECODED = {
    "moderate 16-bit RGBA PNG": lambda: png(3000, 3000, 16, 6),
    "moderate interlaced PNG": lambda: png(3000, 3000, 8, 2, True),
    "APNG": lambda: png(50, 50, chunks=chunk(b"acTL", struct.pack(">II", 1 << 30, 0))),
    "EXIF of a PNG": lambda: png(64, 64, chunks=chunk(b"eXIf", SHARED)),
    "EXIF as text in a PNG": lambda: png(64, 64, chunks=profile_as_text(shared_tags(4000, 200_000))),
    "EXIF of a WebP": lambda: webp(64, 64, riff(b"EXIF", SHARED)),
    "moderate scans": lambda: jpeg(1000, 1000, 100),
    "moderate CMYK": lambda: jpeg(2000, 2000, 5, 4),
    "moderate WebP": lambda: webp(3000, 3000),
    "moderate TIFF": lambda: tiff_of(3000, zeros(27_000_000)),
    "TIFF that announces few bytes": lambda: tiff_of(64, zeros(1 << 30), _279=[999]),
    "TIFF that inflates to more": lambda: tiff_of(64, zeros(1 << 30)),
    "TIFF in a circle": lambda: circle(tiff_of(64, zeros(64 * 64 * 3))),
    "frames of a GIF": lambda: gif(64, 64)[:-1] + gif(64, 64)[19:-1] * 5000 + b"\x3b",
    "moderate BMP of runs": lambda: bombs.bmp_of_runs(500, 2, b"\xff\0\xf5\0\0\0" * 2),
    "two formats": lambda: bombs.tiff_and_fli(30, 13_000),
}
# Refused by the libraries' own limits.
GUARDED = {
    "iCCP": (lambda: png(64, 64, chunks=chunk(b"iCCP", b"x\0\0" + zeros(1 << 30))), "Decompressed data too large"),
    "zTXt": (lambda: png(64, 64, chunks=chunk(b"zTXt", b"x\0\0" + zeros(1 << 30))), ""),
    "iTXt": (lambda: png(64, 64, chunks=chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(1 << 30))), ""),
}


def exif_segments(block: bytes) -> list[bytes]:
    return [segment(0xE1, b"Exif\0\0" + block[n : n + 65_000]) for n in range(0, len(block), 65_000)]


def circle(data: bytes) -> bytes:
    """A TIFF whose directory names itself as the next."""
    return data[:-4] + data[4:8]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What came of each (call, name): see `bombs.cost`."""
    folder = tmp_path_factory.mktemp("bombs")
    cases = {}
    files = {name: make for name, (make, _) in (REFUSED | GUARDED).items()} | DECODED
    for number, (name, make) in enumerate(files.items()):
        path = folder / str(number)
        path.write_bytes(make())
        calls = ("picture", "mask") if name in REFUSED else ("picture", "mask", "rgb")
        cases |= {(call, name): (call, path) for call in calls}
    return dict(zip(cases, bombs.cost(list(cases.values())), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_too_much_is_refused_at_once(name, measured):
    for call in ("picture", "mask"):
        found, peak, seconds = measured[call, name]
        assert re.match(f"ImageError: .*{REFUSED[name][1]}", found), found
        assert "\n" not in found and peak < SPARE and seconds < 8


@pytest.mark.parametrize("name", GUARDED)
def test_what_inflates_beside_the_pixels_is_refused_or_left_alone(name, measured):
    for call in ("picture", "mask", "rgb"):
        found, peak, seconds = measured[call, name]
        assert re.match(f"ImageError: .*{GUARDED[name][1]}", found), found
        assert "\n" not in found and peak < SPARE and seconds < 8


@pytest.mark.parametrize("name", DECODED)
def test_what_only_looks_like_much_is_decoded_in_little(name, measured):
    for call in ("picture", "mask", "rgb"):
        found, peak, seconds = measured[call, name]
        assert found.startswith("("), found
        assert peak < 2 * SPARE + 100 and seconds < 8


def test_a_file_is_measured_before_it_is_read(tmp_path):
    """A gigabyte that takes no space on the disk, a device without an end, and a photograph's size."""
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "small.png").write_bytes(png(8, 8))
    found = bombs.cost([("file", tmp_path / name) for name in ("sparse.png", "zero.png", "small.png")])
    expected = ["TooLarge: .*801,048,576 bytes or fewer", "UserError: ", "b'.PNG"]
    for (text, peak, _), message in zip(found, expected, strict=True):
        assert re.match(message, text.replace("\\x89", "."), re.DOTALL), text
        assert peak < SPARE


def test_masks_in_records_are_bounded(tmp_path):
    cases = {"wide": png(40_000, 40_000, 1, 0), "not ours": webp(9000, 9000), "mask": png(512, 512, 1, 0)}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    wide, other, mask = bombs.cost([("record", tmp_path / name) for name in cases])
    assert wide[0] == "ValueError: data: expected at most 100000000 pixels. Received 40000 x 40000."
    assert other[0].endswith("that are not a PNG.") and mask[0] == "(512, 512)"
    assert max(wide[1], other[1]) < SPARE


@pytest.mark.parametrize("own_depth", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_what_is_announced_is_not_less_than_what_is_taken(own_depth, tmp_path):
    """Of nine megapixels in every format: the peak of a process against the estimate and what an empty one takes."""
    side, call = 3000, "picture" if own_depth else "rgb"
    raw = bytes(side * side * 3)
    files = [
        png(side, side, depth, color) for depth, color in [(8, 0), (8, 2), (8, 6), (16, 0), (16, 2), (16, 4), (16, 6)]
    ]
    files += [jpeg(side, side, 3, components) for components in (1, 3, 4)]
    files += [webp(side, side), gif(side, side), tiff_of(side, zeros(len(raw))), tiff_of(side, raw, _259=[1])]
    files += [tiff_of(side, zeros(len(raw)), _274=[6]), tiff_of(side, zeros(2 * len(raw)), _258=[16, 16, 16])]
    files.append(bombs.bmp_of_runs(side, side, (b"\xff\0" * 11 + b"\xc3\0\0\0") * side))
    deep = zeros(2 * len(raw) // 3)  # of one channel of 16 bits
    files += [tiff_of(side, zeros(4 * len(raw) // 3), _258=[16, 16], _262=[1], _277=[2], _338=[2], _274=[6])]
    planes = {"_273": [16 + n * len(deep) for n in range(3)], "_279": [len(deep)] * 3, "_284": [2]}
    files += [tiff_of(side, deep * 3, _258=[16, 16, 16], **planes)]
    files += [tiff_of(side, zeros(8 * len(raw) // 3), _258=[16] * 4, _262=[5], _277=[4])]
    smooth = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint16)[..., None] * np.ones(4, np.uint16)
    for kind, channels in [("JPEG2000", 3), ("AVIF", 3), ("AVIF", 4)]:
        file = io.BytesIO()
        Image.fromarray(smooth[..., :channels].astype(np.uint8)).save(
            file, kind, **({"speed": 10} if kind == "AVIF" else {})
        )
        files.append(file.getvalue())
    files.append(cv2.imencode(".jp2", smooth[..., :3])[1].tobytes())
    (tmp_path / "empty").write_bytes(png(1, 1))
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    least, *found = bombs.cost([(call, tmp_path / name) for name in ("empty", *map(str, range(len(files))))])
    for data, (text, peak, _) in zip(files, found, strict=True):
        demand = headers.read_demand(data, headers.format_of(data))
        assert text.startswith("(3000, 3000"), text
        print(
            headers.format_of(data), (peak - least[1]), round((len(data) + budget.memory_of(demand, own_depth)) / 1e6)
        )
        assert (peak - least[1]) * 1e6 < len(data) + budget.memory_of(demand, own_depth) + (20 << 20), demand


def test_limits_grow_with_the_pixels_that_are_allowed():
    data = png(4000, 4000, 16, 6)  # 384 MB when filled
    with pytest.raises(ImageError, match="takes at most 323 MB .16000000 pixels.. Received PNG that takes 384 MB"):
        budget.admit(data, 16_000_000, own_depth=True)
    assert budget.admit(data, 16_000_000)[0] == "PNG"
    assert budget.admit(data, 20_000_000, own_depth=True)[0] == "PNG"
    with pytest.raises(ImageError, match="at most 15999999 pixels. Received 4000 x 4000"):
        budget.admit(data, 15_999_999)


def test_half_a_gigapixel_may_be_asked_for(monkeypatch):
    """Pillow alone refuses more than 179 megapixels, whatever a command was told."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    wide = png(25_000, 20_000, 1, 0)
    assert budget.max_memory(MOST_PIXELS) == 16 * 500_000_000 + (64 << 20)
    assert rgb.read_header(wide, MOST_PIXELS).width == 25_000
    with pytest.raises(ImageError, match="expected at most 100000000 pixels"):
        rgb.read_header(wide)
    spec = rgb.ImageSpec(short_side=8, max_pixels=200_000_000)
    data, height, width = rgb.to_jpeg(png(18_000, 10_000, 1, 0), spec)
    assert (height, width) == (8, 14) and not np.asarray(Image.open(io.BytesIO(data))).any()
    with pytest.raises(ValueError, match="max_pixels: expected 1 to 500000000"):
        rgb.ImageSpec(max_pixels=500_000_001)


@pytest.mark.parametrize("job", ["inpaint", "evaluate", "build_imagenet", "build_masks"])
def test_every_job_that_reads_pictures_takes_a_limit(job):
    parser = importlib.import_module(f"pipelines.{job}").parser()
    (option,) = [action for action in parser._actions if "--max-pixels" in action.option_strings]
    assert option.type("500000000") == 500_000_000
    with pytest.raises(argparse.ArgumentTypeError, match="expected 1 to 500000000. Received 500000001."):
        option.type("500000001")
    assert "at most 500 million" in option.help and "500 million 4 GB, 8 GB and 60 s" in option.help


@pytest.mark.parametrize("own_depth", [True, False])
def test_a_hundred_megapixels_are_admitted(own_depth):
    """Of 8 bits, in the formats of photographs; nothing is decoded here."""
    for data in [png(10_000, 10_000), png(10_000, 10_000, 8, 6), jpeg(10_000, 10_000, 10, 3), jpeg(10_000, 10_000)]:
        demand = budget.admit(data, own_depth=own_depth)[1]
        # The file may have as many bytes as a photograph of that size.
        assert budget.memory_of(demand, own_depth) + 300_000_000 < budget.max_memory()
    assert budget.admit(png(6000, 4000, 16, 6), own_depth=own_depth)[1].pixels == 24_000_000
