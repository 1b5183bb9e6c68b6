"""JPEG 2000, AVIF and HEIC: pixels against Pillow's and OpenCV's, what files announce, small ones that cost much."""

from __future__ import annotations

import base64
import io
import struct
import sys

import cv2
import numpy as np
import pytest
from bomb_files import chunk
from PIL import Image, ImageCms, features

from trainer.errors import ImageError
from trainer.images import budget, headers
from trainer.images.headers import heif
from trainer.images.pictures import decode, encode
from trainer.images.rgb import decode_rgb, read_header

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_X, _Y = np.meshgrid(np.arange(64) * 4, np.arange(48) * 5)
SMOOTH = np.stack([_X, _Y, 255 - _X, 128 + _Y // 2], -1).astype(np.uint8)

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")

# 64 x 48, gray above, red below; written by libheif 1.19 with x265: a still of 4:2:0, and `HEIC_PAIR` of two pictures.
HEIC = base64.b64decode(
    """
AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA
AAAERAAAEAAQAAAAABogABAAAAAAAAAKsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAA
AADeaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOA
AAAwAAHpAEECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABA
AAAAKGNsYXAAAABAAAAAAQAAADAAAAABAAAAAAAAAAL////wAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAA
CzbWRhdAAAAKcoAa8GOFtl9okrb3jGCjtvyEb//8259D9IBbRwbGgqIE2uqEacpXOl74d6G9nuYpo8v/lQ3gn5R7C3P9zA+ebCnoh/Zl/2Swt+
+/7BVQ7zEMKq5VTSa7XpxLkhWAp221O9saPP1An4u9pFo75hO4mPIat5dtxBxRxvYYdUJtkw/+ftxGFsS89FElRVzkPHsvv1cFqSOIjDjPU2XP
h4F0FFHN2CYvy1GA==
"""
)


def save(kind: str, channels: int = 3, **options) -> bytes:
    file = io.BytesIO()
    pixels = SMOOTH[..., [0, 3] if channels == 2 else [*range(channels)]]
    Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def plain(image: Image.Image) -> np.ndarray:
    found = np.asarray(image)
    return found[..., None] if found.ndim == 2 else found


# JPEG 2000


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True},
        {"tile_size": (32, 32), "num_resolutions": 3},
        {"codeblock_size": (16, 16), "precinct_size": (64, 64), "progression": "RPCL"},
        {"irreversible": True, "quality_layers": [2]},
    ],
)
def test_jpeg_2000_is_read_in_every_way_of_coding(options, channels):
    data = save("JPEG2000", channels, **options)
    pixels = SMOOTH[..., [0, 3] if channels == 2 else [*range(channels)]]
    picture = decode(data)
    assert picture.metadata.format == "JPEG2000" and picture.pixels.shape == pixels.shape
    assert np.abs(picture.pixels.astype(int) - pixels).max() <= (3 if "irreversible" in options else 0)
    assert np.abs(decode_rgb(data).astype(int) - (pixels[..., :3] if channels > 2 else pixels[..., :1])).max() <= 3
    assert read_header(data).width == 64


def test_jpeg_2000_of_sixteen_bits():
    """OpenCV writes them; a color profile lies in a box of its own."""
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        pixels = rng.integers(0, 65_536, (48, 64, channels)).astype(np.uint16)
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        data = cv2.imencode(".jp2", np.ascontiguousarray(pixels[..., order]), options)[1].tobytes()
        found = decode(data).pixels
        np.testing.assert_array_equal(found, pixels, strict=True)
        np.testing.assert_array_equal(decode_rgb(data), (pixels[..., :3] >> 8) + np.zeros(3, np.uint8))
    data = save("JPEG2000")
    place = data.index(b"colr") - 4
    length = struct.unpack(">I", data[place : place + 4])[0]
    box = struct.pack(">I4sBBB", 11 + len(SRGB), b"colr", 2, 0, 0) + SRGB
    outer = data.index(b"jp2h") - 4
    longer = struct.unpack(">I", data[outer : outer + 4])[0] + len(box) - length
    data = data[:outer] + struct.pack(">I", longer) + data[outer + 4 : place] + box + data[place + length :]
    assert decode(data).metadata.icc == SRGB


def codestream(width: int, height: int, tile: tuple[int, int], components: int = 3, cod: bytes = b"", **more) -> bytes:
    """A codestream of a main header alone; ``more``: markers by their number in hexadecimal, after an ``x``."""
    size = struct.pack(">H8IH", 0, width, height, 0, 0, *tile, 0, 0, components) + b"\x07\x01\x01" * components
    cod = cod or bytes([0, 0, 0, 1, 1, 5, 4, 4, 0, 1])
    quantization = bytes([0x40]) + bytes([8 << 3] * 16)
    segments = [(0x51, size), (0x52, cod), (0x5C, quantization)]
    segments += [(int(name[1:], 16), content) for name, content in more.items()]
    return b"\xff\x4f" + b"".join(struct.pack(">BBH", 255, n, len(c) + 2) + c for n, c in segments) + b"\xff\xd9"


def wrapped(stream: bytes, width: int, height: int) -> bytes:
    def box(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", len(content) + 8, name) + content

    head = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 3, 7, 7, 0, 0)) + box(
        b"colr", bytes([1, 0, 0, 0, 0, 0, 16])
    )
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", head) + box(b"jp2c", stream)


REFUSED = {
    "pixels": (codestream(60_000, 60_000, (60_000, 60_000)), "at most 100000000 pixels. Received 60000 x 60000"),
    "another size inside": (wrapped(codestream(60_000, 60_000, (64, 64)), 64, 64), "expected one size"),
    "tiles": (codestream(9000, 9000, (1, 1)), "takes at most 1667 MB .* 81000000 tiles"),
    "layers": (
        codestream(8192, 8192, (8192, 8192), cod=bytes([1, 0, 255, 255, 1, 0, 4, 4, 0, 1, 0x00])),
        "takes at most 1667 MB",
    ),
    "code-blocks": (codestream(9000, 9000, (9000, 9000), cod=bytes([0, 0, 0, 1, 1, 5, 0, 0, 0, 1])), "at most 1667 MB"),
    "coding passes": (codestream(9000, 9000, (512, 512), x5D=bytes([0, 0xE0, 31 << 3])), "takes at most 20 seconds"),
    "of a component": (
        codestream(64, 64, (64, 64), x53=bytes([0, 0, 5, 4, 4, 0, 1])),
        "JPEG 2000 with COC: convert it",
    ),
    "region": (codestream(64, 64, (64, 64), x5E=bytes([0, 0, 37])), "JPEG 2000 with RGN: convert it"),
    "channels": (codestream(64, 64, (64, 64), 5), "1 to 4 channels. Received 5: convert it"),
    "no size": (b"\xff\x4f\xff\x51" + bytes(60), "the header is broken"),
    "cut": (codestream(64, 64, (64, 64))[:60], "the header is broken"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_jpeg_2000_that_takes_too_much_is_refused_before_it_is_decoded(name, monkeypatch):
    data, message = REFUSED[name]
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("a decoder was called"))
    for function in (decode, decode_rgb, read_header):
        with pytest.raises(ImageError, match=message):
            function(data)


# AVIF


@needs_avif
@pytest.mark.parametrize("channels", [3, 4])
def test_avif_is_read_as_pillow_reads_it(channels):
    data = save("AVIF", channels, quality=90, icc_profile=SRGB, exif=exif_of(6))
    picture = decode(data)
    np.testing.assert_array_equal(picture.pixels, plain(Image.open(io.BytesIO(data))))
    assert np.abs(picture.pixels.astype(int) - SMOOTH[..., :channels]).mean() < 4
    assert (picture.metadata.format, picture.metadata.icc, picture.metadata.orientation) == ("AVIF", SRGB, 6)
    assert decode_rgb(data).shape == (64, 48, 3)
    for kind in ("png", "webp"):
        out = Image.open(io.BytesIO(encode(picture, kind)))
        assert out.getexif()[0x0112] == 6 and out.info["icc_profile"] == SRGB


def exif_of(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@needs_avif
def test_colors_of_an_avif_stay_as_cicp():
    data = save("AVIF", quality=90)
    place = data.index(b"nclx") + 4
    assert struct.unpack_from(">HH", data, place) == (1, 13)
    assert not dict(decode(data).metadata.chunks)
    wide = data[:place] + struct.pack(">HH", 9, 16) + data[place + 4 :]
    assert chunk(b"cICP", bytes([9, 16, 0, 1])) in encode(decode(wide))
    with pytest.raises(ImageError, match="cICP 9/16.*--format png"):
        encode(decode(wide), "jpeg")


@needs_avif
def test_depth_that_is_lost_is_told():
    wide = np.random.default_rng(0).integers(0, 1024, (48, 64, 3)).astype(np.uint16)
    done, data = cv2.imencode(".avif", wide, [cv2.IMWRITE_AVIF_DEPTH, 10])
    assert done
    assert decode(data.tobytes()).metadata.notes == ("10 bits per channel are read as 8",)
    assert decode(save("AVIF")).metadata.notes == ()


def sequence_header(data: bytes) -> int:
    """Where AV1's sequence header begins in an AVIF that libaom wrote: a reduced one, of a still picture."""
    place = data.index(b"\x0a", data.index(b"mdat"))
    assert data[place - 2 : place] == b"\x12\0" and data[place + 2] >> 3 & 3 == 3
    return place + 2


@needs_avif
def test_sizes_are_those_of_the_coded_data():
    """A header of 64 x 48 around a picture that announces 65,536 x 65,536."""
    data = bytearray(save("AVIF"))
    demand = headers.read_demand(bytes(data), "AVIF")
    assert (demand.width, demand.height, demand.frames) == (64, 48, 1)
    place = sequence_header(data)
    # After 3 + 1 + 1 + 5 bits: 4 + 4 bits that say how many bits the sides have, then the sides.
    head = int.from_bytes(data[place : place + 8], "big")
    across, down = head >> 50 & 15, head >> 46 & 15
    assert (across, down) == (5, 5) and (head >> 40 & 63, head >> 34 & 63) == (63, 47)
    head |= 0xFF << 46
    data[place : place + 8] = head.to_bytes(8, "big")
    with pytest.raises(ImageError, match="at most 100000000 pixels"):
        budget.admit(bytes(data))


@needs_avif
def test_pictures_that_are_hidden_in_an_avif_count():
    """Frames before the one that is shown, each decoded at full size."""
    data = save("AVIF")
    place = data.index(b"mdat") + 4
    items = heif.read_items(data)
    start, length = items.parts[items.primary][0]
    assert start == place
    frame = data[sequence_header(data) + data[sequence_header(data) - 1] :]
    more = data + frame * 300_000 if len(frame) < 100 else data + frame * 3000
    at = data.index(struct.pack(">II", start, length))
    more = more[:at] + struct.pack(">II", start, len(more) - start) + more[at + 8 :]
    demand = headers.read_demand(more, "AVIF")
    assert demand.seconds > 2000 * headers.read_demand(data, "AVIF").seconds
    with pytest.raises(ImageError, match="expected AVIF of a still picture. Received a sequence: save it as"):
        decode(b"\0\0\0\x20ftypavis" + data[12:])


# HEIC


def test_heic_says_which_package_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for function in (decode, decode_rgb, read_header):
        with pytest.raises(ImageError, match=r"HEIC is read by an optional package.*pip install 'pconv\[heic\]'"):
            function(HEIC)


def test_heic_is_read_where_the_package_is():
    pytest.importorskip("pillow_heif")
    picture = decode(HEIC)
    assert picture.metadata.format == "HEIF" and picture.pixels.shape == (48, 64, 3)
    assert np.abs(picture.pixels[:20].astype(int) - 128).max() < 6
    assert np.abs(picture.pixels[30:].astype(int) - [200, 30, 40]).max() < 12
    np.testing.assert_array_equal(decode_rgb(HEIC), picture.pixels)


@pytest.fixture
def reader(monkeypatch):
    """HEIC as if its package were there: nothing here comes to call it."""
    monkeypatch.setattr(budget, "_require_decoder", lambda format: None)


@pytest.mark.usefixtures("reader")
def test_sizes_of_a_heic_are_those_of_the_coded_data():
    demand = headers.read_demand(HEIC, "HEIF")
    assert (demand.width, demand.height) == (64, 64)  # whole blocks, of which a part is shown
    place = HEIC.index(b"ispe") + 8
    assert struct.unpack_from(">II", HEIC, place) == (64, 64)
    large = HEIC[:place] + struct.pack(">II", 40_000, 40_000) + HEIC[place + 8 :]
    with pytest.raises(ImageError, match="at most 100000000 pixels. Received 40000 x 40000"):
        budget.admit(large)
    small = HEIC[:place] + struct.pack(">II", 1, 1) + HEIC[place + 8 :]
    assert headers.read_demand(small, "HEIF").pixels == 64 * 64 or headers.read_demand(small, "HEIF").width <= 64


@pytest.mark.usefixtures("reader")
def test_what_else_a_heif_file_may_hold_is_refused():
    items = {b"hvc1": b"j2k1", b"pitm": b"free", b"hvcC": b"free"}
    messages = [
        "expected HEIC of hvc1 pictures. Received j2k1: ",
        "expected a primary image",
        "a configuration of HEVC",
    ]
    for (name, other), message in zip(items.items(), messages, strict=True):
        place = HEIC.index(name)
        with pytest.raises(ImageError, match=message):
            budget.admit(HEIC[:place] + other + HEIC[place + 4 :])


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def phone_picture(cells: int = 4, repeat: int = 1, size: tuple[int, int] = (128, 128)) -> bytes:
    """A grid of 2 x 2 pictures of 64 x 64, as phones write it, beside a thumbnail; all share the data of `HEIC`.

    Args:
        cells: items that the grid is made of, each ``repeat`` times.
    """
    items = heif.read_items(HEIC)
    (start, length), *_ = items.parts[items.primary]
    properties = dict(items.properties[items.primary])
    kinds = {1: b"grid", **dict.fromkeys(range(2, 2 + cells), b"hvc1"), 90: b"hvc1"}
    grid = bytes([0, 0, 1, 1]) + struct.pack(">HH", *size)
    infe = b"".join(box(b"infe", struct.pack(">IHH4sB", 2 << 24, n, 0, kind, 0)) for n, kind in kinds.items())
    stored = [box(b"hvcC", properties[b"hvcC"]), box(b"ispe", properties[b"ispe"])]
    stored.append(box(b"ispe", bytes(4) + struct.pack(">II", *size)))
    linked = [struct.pack(">HBB", n, 1, 3) if n == 1 else struct.pack(">HBBB", n, 2, 0x81, 2) for n in kinds]
    ipma = box(b"ipma", struct.pack(">II", 0, len(kinds)) + b"".join(linked))
    made_of = [*range(2, 2 + cells)] * repeat
    iref = box(b"dimg", struct.pack(f">HH{len(made_of)}H", 1, len(made_of), *made_of))
    iref += box(b"thmb", struct.pack(">HHH", 90, 1, 1))

    def build(place: int) -> bytes:
        located = [(n, *((place, len(grid)) if n == 1 else (place + len(grid), length))) for n in kinds]
        iloc = struct.pack(">IBBH", 0, 0x44, 0, len(kinds))
        iloc += b"".join(struct.pack(">HHHII", n, 0, 1, where, count) for n, where, count in located)
        meta = box(b"hdlr", bytes(8) + b"pict" + bytes(13)) + box(b"pitm", struct.pack(">IH", 0, 1))
        meta += box(b"iinf", struct.pack(">IH", 0, len(kinds)) + infe) + box(b"iloc", iloc)
        meta += box(b"iprp", box(b"ipco", b"".join(stored)) + ipma) + box(b"iref", bytes(4) + iref)
        head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic") + box(b"meta", bytes(4) + meta)
        return head + box(b"mdat", grid + HEIC[start : start + length])

    return build(build(0).index(b"mdat") + 4)


@pytest.mark.usefixtures("reader")
def test_grids_of_pictures_count_each_of_them():
    one, four = headers.read_demand(HEIC, "HEIF"), headers.read_demand(phone_picture(), "HEIF")
    assert (four.width, four.height, four.frames) == (128, 128, 1)
    assert four.seconds == pytest.approx(4 * one.seconds)
    assert headers.read_demand(phone_picture(repeat=500), "HEIF").seconds == pytest.approx(2000 * one.seconds)
    with pytest.raises(ImageError, match="at most 4096 references"):
        budget.admit(phone_picture(repeat=2000))
    with pytest.raises(ImageError, match="at most 100000000 pixels. Received 60000 x 60000"):
        budget.admit(phone_picture(size=(60_000, 60_000)))


def test_a_grid_is_read_as_one_picture():
    pytest.importorskip("pillow_heif")
    picture, cell = decode(phone_picture()).pixels, decode(HEIC).pixels
    assert picture.shape == (128, 128, 3)
    for top in (0, 64):
        for left in (0, 64):
            np.testing.assert_array_equal(picture[top : top + 48, left : left + 64], cell)


@needs_avif
@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF"])
def test_broken_files_are_refused_or_read(kind, reader):
    data = bytearray(HEIC if kind == "HEIF" else save(kind))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        broken = data.copy()
        for place in rng.integers(8, min(len(data), 400), 2):
            broken[place] = rng.integers(0, 256)
        try:
            budget.admit(bytes(broken), 1_000_000)
            if kind != "HEIF":
                decode(bytes(broken), 1_000_000)
        except ImageError:
            refused += 1
    assert refused > 20
