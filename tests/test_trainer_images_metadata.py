"""What stands beside the pixels: read from outputs by Pillow or byte by byte, against what was put into the inputs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from bomb_files import chunk
from PIL import Image, ImageCms

from trainer.errors import ImageError
from trainer.images import color, exif
from trainer.images.pictures import Picture, decode, encode
from trainer.images.rgb import turn

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRADIENT = np.stack(np.meshgrid(np.arange(64) * 4, np.arange(48) * 5, [0, 90, 255]), -1)[..., 0].astype(np.uint8)
KINDS = ("png", "jpeg", "webp")
PACKET = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 tiff:Orientation="6" exif:PixelXDimension="4000" xmp:Rating="5" {more}>
<exif:PixelYDimension>3000</exif:PixelYDimension><dc:title>Größe</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"""


def save(kind: str, pixels: np.ndarray = GRADIENT, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_with(*chunks: tuple[bytes, bytes], pixels: np.ndarray = GRADIENT) -> bytes:
    data = save("PNG", pixels)
    return data[:33] + b"".join(chunk(name, content) for name, content in chunks) + data[33:]


def chunks_in(png: bytes) -> list[tuple[bytes, bytes]]:
    place, found = 8, []
    while place < len(png):
        length, name = struct.unpack_from(">I4s", png, place)
        content = png[place + 8 : place + 8 + length]
        assert png[place + 8 + length : place + 12 + length] == struct.pack(">I", zlib.crc32(name + content))
        found.append((name, content))
        place += 12 + length
    return found


def reopen(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def camera_block(order: str = "<", width: int = 4000, height: int = 3000) -> bytes:
    """EXIF as a camera writes it, by hand: orientation 6, a thumbnail, a maker's note, text that is not ASCII, GPS."""

    def directory(start: int, entries: list[tuple[int, int, int, bytes]], following: int = 0) -> bytes:
        table, values = struct.pack(order + "H", len(entries)), b""
        for tag, kind, count, value in entries:
            if len(value) > 4:
                table += struct.pack(order + "HHII", tag, kind, count, start + 6 + 12 * len(entries) + len(values))
                values += value + bytes(len(value) % 2)
            else:
                table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
        return table + struct.pack(order + "I", following) + values

    def short(value):
        return struct.pack(order + "H", value)

    def long(value):
        return struct.pack(order + "I", value)

    copyright = "© Jörg\0".encode()
    first = [(0x0100, 4, 1, long(width)), (0x010F, 2, 4, b"Cam\0"), (0x0112, 3, 1, short(6)), (0x0132, 2, 20, DATE)]
    first += [(0x8298, 2, len(copyright), copyright), (0x8769, 4, 1, long(500)), (0x8825, 4, 1, long(900))]
    first += [(0xC4A5, 7, 9, b"PrintIM\0\0")]
    inner = [(0x829A, 5, 1, struct.pack(order + "2I", 1, 250)), (0x9204, 10, 1, struct.pack(order + "2i", -2, 3))]
    inner += [(0x927C, 7, len(PREVIEW), PREVIEW), (0xA001, 3, 1, short(65_535)), (0xA002, 3, 1, short(width))]
    inner += [(0xA003, 3, 1, short(height)), (0xA005, 4, 1, long(800))]
    gps = [(1, 2, 2, b"N\0"), (2, 5, 3, struct.pack(order + "6I", 52, 1, 31, 1, 12, 1))]
    thumbnail = [(0x0201, 4, 1, long(1100)), (0x0202, 4, 1, long(len(PREVIEW)))]
    parts = {8: directory(8, first, 1000), 500: directory(500, inner), 800: directory(800, [(1, 2, 4, b"R03\0")])}
    parts |= {900: directory(900, gps), 1000: directory(1000, thumbnail), 1100: PREVIEW}
    block = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    for place, part in parts.items():
        assert len(block) <= place
        block = block.ljust(place, b"\0") + part
    return block


DATE, PREVIEW = b"2020:01:01 00:00:00\0", b"\xff\xd8 a small picture of what is removed \xff\xd9" * 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_exif_is_kept_true(source, kind, order):
    block = camera_block(order)
    data = save(source, exif=b"Exif\0\0" + block, **({"lossless": True} if source == "WEBP" else {}))
    assert PREVIEW in data
    out = encode(decode(data), kind)
    assert PREVIEW not in out and b"PrintIM" not in out
    assert "© Jörg".encode() in out and DATE in out
    found = reopen(out).getexif()
    assert dict(found).keys() == {0x010F, 0x0112, 0x0132, 0x8298, 0x8769, 0x8825}
    assert (found[0x010F], found[0x0112], found[0x0132]) == ("Cam", 6, DATE[:-1].decode())
    inner = found.get_ifd(0x8769)
    assert (inner[0x829A], inner[0x9204], inner[0xA001]) == (1 / 250, -2 / 3, 65_535)
    assert (inner[0xA002], inner[0xA003]) == (64, 48)  # of the pixels, as they are stored
    assert 0x927C not in inner and found.get_ifd(0xA005) == {1: "R03"}
    assert found.get_ifd(0x8825) == {1: "N", 2: (52.0, 31.0, 12.0)}
    assert not found.get_ifd(1)
    again = decode(out)
    assert again.metadata.exif == decode(data).metadata.exif and again.metadata.orientation == 6


def test_exif_of_a_tiff_is_that_of_its_first_page_without_its_structure():
    block = Image.Exif()
    block.load(camera_block())
    del block[0x0100]
    stored = np.ascontiguousarray(turn(GRADIENT, 8))  # 64 pixels across become 48
    picture = decode(save("TIFF", stored, exif=block))
    np.testing.assert_array_equal(picture.pixels, GRADIENT)
    for kind in KINDS:
        found = reopen(encode(picture, kind)).getexif()
        assert dict(found).keys() == {0x010F, 0x0132, 0x8298, 0x8769, 0x8825}
        inner = found.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003]) == (64, 48)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_blocks_cost_nothing_but_themselves():
    block, rng = camera_block(), np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        broken = bytearray(block)
        for place in rng.integers(0, 200, 3):
            broken[place] = rng.integers(0, 256)
        found = exif.read(bytes(broken), 64, 48)
        if found is not None:
            kept += 1
            written = exif.encode(found, 6)
            assert exif.read(written, 64, 48) == found and len(written) < 2 * len(block)
    assert kept > 100


def density_in(data: bytes) -> tuple[int, ...] | None:
    """(unit, across, down) as the file says it: pHYs of a PNG, JFIF of a JPEG."""
    if data[:2] == b"\xff\xd8":
        return struct.unpack_from(">BHH", data, 13)
    found = dict(chunks_in(data)).get(b"pHYs")
    return None if found is None else (found[8], *struct.unpack(">II", found[:8]))


def test_density_goes_from_format_to_format():
    ratio = save("JPEG")
    ratio = ratio[:13] + struct.pack(">BHH", 0, 3, 2) + ratio[18:]
    metric = save("JPEG")
    metric = metric[:13] + struct.pack(">BHH", 2, 118, 60) + metric[18:]
    cases = {
        save("JPEG", dpi=(300, 150)): ((1, 11_811, 5906), (1, 300, 150)),
        save("PNG", dpi=(300, 150)): ((1, 11_811, 5906), (1, 300, 150)),
        save("TIFF", dpi=(300, 150)): ((1, 11_811, 5906), (1, 300, 150)),
        save("BMP", dpi=(300, 300)): ((1, 11_811, 11_811), (1, 300, 300)),
        metric: ((1, 11_800, 6000), (1, 300, 152)),
        ratio: ((0, 3, 2), (0, 3, 2)),
        png_with((b"pHYs", struct.pack(">IIB", 5, 4, 0))): ((0, 5, 4), (0, 5, 4)),
        save("PNG"): (None, (0, 1, 1)),
        save("JPEG"): (None, (0, 1, 1)),
    }
    for data, (in_png, in_jpeg) in cases.items():
        picture = decode(data)
        assert density_in(encode(picture)) == in_png and density_in(encode(picture, "jpeg")) == in_jpeg
        block = reopen(encode(picture, "webp")).getexif()
        if in_jpeg[0] == 1:
            assert (block[282], block[283], block[296]) == pytest.approx((*in_jpeg[1:], 2), abs=0.6)
        else:
            assert 282 not in block
    webp = decode(encode(decode(save("PNG", dpi=(300, 150))), "webp"))
    assert density_in(encode(webp)) == (1, 11_811, 5906)


LINEAR = (b"gAMA", struct.pack(">I", 100_000))
P3 = (b"cHRM", struct.pack(">8I", 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6000))
PLAIN = [(b"gAMA", struct.pack(">I", 45_455)), (b"sRGB", b"\0")]


@pytest.mark.parametrize("kind", KINDS)
def test_colors_are_shown_as_those_of_the_input(kind):
    """gAMA and cHRM stay in a PNG and become a profile elsewhere, which LittleCMS takes to the same sRGB values."""
    light = (GRADIENT / 255) ** 1.0  # gAMA of 1: the stored values are those of light
    to_xyz = np.array([[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0, 0.0451, 1.0439]])  # of Display P3
    to_srgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = np.clip(light @ to_xyz.T @ to_srgb.T, 0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    out = encode(decode(png_with(LINEAR, P3)), kind)
    if kind == "png":
        assert [pair for pair in chunks_in(out) if pair[0] in (b"gAMA", b"cHRM")] == [LINEAR, P3]
        profile = color.make_profile(100_000, struct.unpack(">8I", P3[1]), is_gray=False)
    else:
        profile = reopen(out).info["icc_profile"]
    profiles = [ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")]
    shown = np.asarray(ImageCms.profileToProfile(Image.fromarray(GRADIENT), *profiles, renderingIntent=1), float)
    inside = ((light @ to_xyz.T @ to_srgb.T >= 0) & (light @ to_xyz.T @ to_srgb.T <= 1)).all(-1)
    assert inside.mean() > 0.2 and np.abs(shown - expected)[inside].max() < 3
    assert "icc_profile" not in reopen(encode(decode(png_with(*PLAIN)), "jpeg")).info
    gray = encode(decode(png_with(LINEAR, pixels=GRADIENT[..., 0])), "jpeg")
    assert reopen(gray).info["icc_profile"][16:20] == b"GRAY"


def test_chunks_of_a_png_stay_in_a_png():
    texts = [(b"tEXt", b"Title\0a cat"), (b"zTXt", b"parameters\0\0" + zlib.compress(b"steps: 20"))]
    texts.append((b"iTXt", b"Comment\0\0\0de\0Kommentar\0" + "schön".encode()))
    coded = [(b"cICP", bytes([9, 16, 0, 1])), (b"sBIT", bytes([5, 6, 5])), LINEAR, P3, (b"cLLI", bytes(8))]
    secret = (b"tEXt", b"Raw profile type exif\0\nexif\n  9\n" + PREVIEW.hex().encode())
    out = encode(decode(png_with(*coded, *texts, secret, (b"tIME", bytes(7)))))
    found = chunks_in(out)
    assert sorted(pair for pair in found if pair[0] not in (b"IHDR", b"IDAT", b"IEND")) == sorted(coded + texts)
    names = [name for name, _ in found]
    assert max(names.index(name) for name, _ in coded) < names.index(b"IDAT")
    palette = io.BytesIO()
    Image.fromarray(GRADIENT).quantize(16).save(palette, "PNG", transparency=3)
    data = palette.getvalue()
    data = data[:33] + chunk(b"sBIT", bytes([5, 6, 5])) + data[33:]
    assert dict(chunks_in(encode(decode(data))))[b"sBIT"] == bytes([5, 6, 5, 8])  # it has an alpha channel now


def test_texts_become_comments_and_comments_texts():
    data = png_with((b"tEXt", b"Title\0a cat"), (b"iTXt", b"Comment" + bytes(5) + "schön".encode()))
    assert reopen(encode(decode(data), "jpeg")).info["comment"] == "Title: a cat\nschön".encode()
    jpeg = save("JPEG", comment="schön")
    assert reopen(encode(decode(jpeg), "jpeg")).info["comment"] == "schön".encode()
    assert reopen(encode(decode(jpeg))).text == {"Comment": "schön"}


@pytest.mark.parametrize("coding", [(9, 16), (12, 13), (9, 18), (1, 8)])
def test_cicp_is_kept_or_the_output_refused(coding):
    picture = decode(png_with((b"cICP", bytes([*coding, 0, 1]))))
    assert (b"cICP", bytes([*coding, 0, 1])) in chunks_in(encode(picture))
    for kind in ("jpeg", "webp"):
        with pytest.raises(ImageError, match=f"{kind} cannot say colors of cICP {coding[0]}/{coding[1]}.*--format png"):
            encode(picture, kind)
    for kind in KINDS:
        encode(decode(png_with((b"cICP", bytes([1, 13, 0, 1])))), kind)


def test_profiles_are_those_of_the_pixels():
    gray = color.make_profile(45_455, None, is_gray=True)
    picture = decode(save("JPEG", icc_profile=gray))
    assert picture.metadata.icc is None and picture.metadata.notes == (
        "a color profile of GRAY that is not one of the pixels is left out",
    )
    picture = decode(save("JPEG", GRADIENT[..., 0], icc_profile=gray))
    for kind in ("png", "jpeg"):
        assert reopen(encode(picture, kind)).info["icc_profile"] == gray
    with pytest.raises(ImageError, match="webp holds no gray.*--format png"):
        encode(picture, "webp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_is_kept_true_and_turns_nothing(source, kind):
    packet = PACKET.format(more='xmpNote:HasExtendedXMP="ABCD"').encode()
    if source == "PNG":
        data = png_with((b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + packet))
    elif source == "TIFF":
        data = save("TIFF", tiffinfo={700: packet})
    else:
        data = save(source, xmp=packet)
    picture = decode(data)
    assert picture.metadata.orientation == 1 and picture.pixels.shape == (48, 64, 3)
    out = reopen(encode(picture, kind))
    found = out.info["xmp"].decode()
    expected = PACKET.format(more="").replace("4000", "64").replace("3000", "48")
    assert found.replace(" >", ">") == expected.replace(" >", ">")
    assert "exif" not in out.info and out.size == (64, 48)  # `getexif` would add what XMP says


def test_xmp_of_a_tiff_that_was_turned_says_so():
    block = Image.Exif()
    block[0x0112] = 6
    data = save("TIFF", exif=block, tiffinfo={700: PACKET.format(more="").encode(), 0x0112: 6})
    found = decode(data).metadata.xmp.decode()
    assert 'tiff:Orientation="1"' in found and 'exif:PixelXDimension="48"' in found


@pytest.mark.parametrize("more", ['GImage:Data="AAAA"', 'hdrgm:Version="1.0"', "><xmp:Thumbnails>AAAA</xmp:Thumbnails"])
def test_xmp_that_holds_or_speaks_of_other_pictures_is_left_out_and_told(more):
    picture = decode(save("JPEG", xmp=PACKET.format(more=more).encode()))
    assert not picture.metadata.xmp and "XMP is left out" in picture.metadata.notes[0]
    assert "xmp" not in reopen(encode(picture)).info


def test_inks_that_became_rgb_are_not_said_to_be_inks():
    packet = PACKET.format(more='photoshop:ICCProfile="SWOP" photoshop:ColorMode="4"').encode()
    block = Image.Exif()
    block[0x8769] = {0xA001: 65_535}
    file = io.BytesIO()
    Image.fromarray(GRADIENT).convert("CMYK").save(file, "JPEG", xmp=packet, exif=block)
    metadata = decode(file.getvalue()).metadata
    assert b"SWOP" not in metadata.xmp and b'photoshop:ColorMode="3"' in metadata.xmp
    found = reopen(encode(decode(file.getvalue()))).getexif()
    assert found.get_ifd(0x8769) == {0xA001: 1}


def test_what_a_jpeg_has_no_room_for_does_not_cost_the_output():
    packet = PACKET.format(more=f'dc:x="{"y" * 70_000}"').encode()
    data = png_with((b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + packet), (b"tEXt", b"Title\0" + b"z" * 70_000))
    out = reopen(encode(decode(data), "jpeg"))
    assert "xmp" not in out.info and len(out.info["comment"]) == 65_000
    assert len(reopen(encode(decode(data))).info["xmp"]) > 70_000


def test_pictures_that_come_from_no_file_have_no_metadata():
    for kind in KINDS:
        out = reopen(encode(Picture(GRADIENT), kind))
        assert not {"icc_profile", "exif", "xmp", "comment", "dpi"} & out.info.keys()
