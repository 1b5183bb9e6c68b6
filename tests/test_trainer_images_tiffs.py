"""TIFFs of every layout against the arrays they were made of, by tifffile, Pillow, OpenCV or byte by byte."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from bomb_files import tiff
from PIL import Image

from press_profile import PRESS, through_littlecms
from trainer.errors import ImageError
from trainer.images.pictures import decode, encode
from trainer.images.rgb import decode_rgb, read_header

HEIGHT, WIDTH = 37, 45


def noise(channels: int, dtype=np.uint16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, channels)).astype(dtype)


def save(pixels: np.ndarray, **options) -> bytes:
    """By tifffile, of pixels [height, width, channels] whatever the planes in the file."""
    channels = pixels.shape[2]
    if options.get("planarconfig") == "separate":
        pixels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    elif channels == 1:
        pixels = pixels[..., 0]
    file = io.BytesIO()
    options = {"photometric": "rgb" if channels > 2 else "minisblack", **options}
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


LAYOUTS = [
    {"byteorder": order, "planarconfig": planes, "compression": compression, "tile": tile}
    for order, planes, compression, tile in itertools.product(
        "<>", ("contig", "separate"), (None, "zlib"), (None, (16, 32))
    )
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_planes_tiles_orders_of_bytes_and_compressions(channels, dtype):
    pixels = noise(channels, dtype)
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    for layout in LAYOUTS:
        data = save(pixels, **layout, **extra, **({} if layout["tile"] else {"rowsperstrip": 10}))
        found = decode(data).pixels
        np.testing.assert_array_equal(found, pixels, strict=True, err_msg=str(layout))
        assert (
            np.abs(
                decode_rgb(data)
                - (pixels[..., :3] if channels > 2 else pixels[..., :1]) / (257 if dtype == np.uint16 else 1)
            ).max()
            <= 1
        )


def test_differences_to_the_left_and_lzw():
    """OpenCV writes LZW with a predictor, Pillow LZW without one."""
    pixels = noise(4)
    for channels in (1, 3, 4):
        part = pixels[..., :channels]
        order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        for predictor in (1, 2):
            options = [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
            data = cv2.imencode(".tif", np.ascontiguousarray(part[..., order]), options)[1].tobytes()
            np.testing.assert_array_equal(decode(data).pixels, part, strict=True)
    for compression in ("tiff_lzw", "packbits", "tiff_deflate", "zstd"):
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(file, "TIFF", compression=compression)
        np.testing.assert_array_equal(decode(file.getvalue()).pixels, pixels[..., :1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2])
def test_white_may_be_zero(channels, dtype):
    pixels, white = noise(channels, dtype), np.iinfo(dtype).max
    stored = pixels.copy()
    stored[..., 0] = white - stored[..., 0]  # alpha is not turned round
    extra = {"extrasamples": ["unassalpha"]} if channels == 2 else {}
    data = save(stored, photometric="miniswhite", **extra)
    np.testing.assert_array_equal(decode(data).pixels, pixels, strict=True)
    expected = pixels[..., :1] / (white / 255)
    assert np.abs(decode_rgb(data) - expected).max() <= 0.5


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_associated_alpha_is_taken_out_of_the_colors(dtype, planes):
    """Colors c and alpha a are stored as c a / white, rounded; c comes back to within what rounding leaves of it."""
    pixels, white = noise(4, dtype), int(np.iinfo(dtype).max)
    pixels[..., 3] = np.maximum(pixels[..., 3], white // 2)
    pixels[:5, :, 3] = 0
    stored = pixels.copy()
    stored[..., :3] = np.rint(pixels[..., :3].astype(float) * pixels[..., 3:] / white)
    found = decode(save(stored, extrasamples=["assocalpha"], planarconfig=planes)).pixels
    np.testing.assert_array_equal(found[..., 3], pixels[..., 3])
    assert np.abs(found[5:, :, :3].astype(int) - pixels[5:, :, :3]).max() <= 2
    assert not found[:5, :, :3].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_extra_channels_that_are_not_said_to_be_alpha_are_left_out_and_told(planes, dtype):
    pixels = noise(5, dtype)
    picture = decode(save(pixels[..., :4], extrasamples=["unspecified"], planarconfig=planes))
    np.testing.assert_array_equal(picture.pixels, pixels[..., :3], strict=True)
    assert picture.metadata.notes == ("1 extra channel, not said to be alpha, left out",)
    picture = decode(save(pixels, extrasamples=["unspecified", "unassalpha"], planarconfig=planes))
    np.testing.assert_array_equal(picture.pixels, pixels[..., [0, 1, 2, 4]], strict=True)
    assert picture.metadata.notes == ("1 extra channel, not said to be alpha, left out",)


def packed(bits: int, values: np.ndarray) -> bytes:
    """Rows of values [height, width] of so many bits each, every row filled up to whole bytes."""
    rows = ("".join(f"{value:0{bits}b}" for value in row) for row in values)
    return b"".join(bytes(int(row[n : n + 8].ljust(8, "0"), 2) for n in range(0, len(row), 8)) for row in rows)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("compression", [1, 8])
def test_bits_between_eight_and_sixteen_are_spread_over_sixteen(compression, bits):
    values = np.random.default_rng(0).integers(0, 1 << bits, (7, 5 * 3))
    content = packed(bits, values) if compression == 1 else zlib.compress(packed(bits, values))
    tags = [(256, 4, [5]), (257, 4, [7]), (258, 3, [bits] * 3), (259, 3, [compression]), (262, 3, [2])]
    tags += [(273, 4, [16]), (277, 3, [3]), (278, 4, [7]), (279, 4, [len(content)])]
    found = decode(tiff(tags, content)).pixels
    exact = values.reshape(7, 5, 3) / ((1 << bits) - 1) * 65_535
    assert found.dtype == np.uint16 and np.abs(found - exact).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_are_turned_upright_with_their_density(orientation):
    pixels = noise(3)
    data = save(pixels, extratags=[(274, 3, 1, orientation, True)], resolution=(300, 150), resolutionunit="INCH")
    eight = save((pixels >> 8).astype(np.uint8), extratags=[(274, 3, 1, orientation, True)])
    picture = decode(data)
    with Image.open(io.BytesIO(eight)) as image:
        image.load()  # turns it
        np.testing.assert_array_equal(picture.pixels >> 8, np.asarray(image))
        np.testing.assert_array_equal(decode_rgb(data), np.asarray(image))
    header = read_header(data)
    assert (header.height, header.width, header.upright) == (HEIGHT, WIDTH, orientation == 1)
    with Image.open(io.BytesIO(encode(picture))) as image:
        assert image.info["dpi"] == pytest.approx((300, 150) if orientation < 5 else (150, 300), abs=0.02)
        assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "16-bit TIFF"])
def test_inks_become_srgb_through_their_profile(kind):
    inks = np.kron(np.random.default_rng(0).integers(0, 256, (5, 6, 4)), np.ones((8, 8, 1))).astype(np.uint8)
    if kind == "16-bit TIFF":
        wide = inks.astype(np.uint16) * 257
        data = save(wide, photometric="separated", extratags=[(34_675, 7, len(PRESS), PRESS, True)])
    else:
        file = io.BytesIO()
        image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
        image.save(file, kind, icc_profile=PRESS, **({"quality": 100} if kind == "JPEG" else {}))
        data = file.getvalue()
        inks = np.asarray(Image.open(io.BytesIO(data)))
    expected = through_littlecms(inks)
    plain = np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))
    assert np.abs(expected.astype(int) - plain).mean() > 15  # otherwise nothing is tested
    picture = decode(data)
    np.testing.assert_array_equal(picture.pixels, expected)
    np.testing.assert_array_equal(decode_rgb(data), expected)
    assert picture.metadata.icc is None  # that of the file describes inks


@pytest.mark.parametrize("profile", [b"", PRESS[:200], PRESS[:16] + b"RGB " + PRESS[20:]])
def test_inks_without_a_profile_that_can_be_used_are_converted_plainly_and_that_is_told(profile):
    inks = np.random.default_rng(0).integers(0, 256, (9, 8, 4)).astype(np.uint8)
    file = io.BytesIO()
    Image.frombytes("CMYK", (8, 9), inks.tobytes()).save(file, "TIFF", **({"icc_profile": profile} if profile else {}))
    picture = decode(file.getvalue())
    exact = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(picture.pixels - exact).max() <= 1
    (note,) = picture.metadata.notes
    assert note.startswith("CMYK without a usable color profile")


def test_cielab_becomes_srgb():
    """Against the known values of gray and of the three primaries under D50."""
    lab = np.zeros((2, 3, 3), np.uint8)
    lab[0] = [[0, 0, 0], [137, 0, 0], [255, 0, 0]]  # L* of 0, 53.7, 100
    lab[1] = [[138, 81, 70], [224, 177, 81], [75, 68, 144]]  # of red, green and blue under D50, a* and b* signed
    tags = [(256, 4, [3]), (257, 4, [2]), (258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [8]), (273, 4, [16])]
    tags += [(277, 3, [3]), (278, 4, [2]), (279, 4, [18])]
    found = decode(tiff(tags, lab.tobytes())).pixels.astype(int)
    np.testing.assert_allclose(found[0], [[0, 0, 0], [128, 128, 128], [255, 255, 255]], atol=2)
    np.testing.assert_allclose(
        found[1], [[255, 0, 0], [0, 255, 0], [0, 0, 255]], atol=24
    )  # dark ones feel L* being rounded


REFUSED = {
    "float RGB": (lambda: save(noise(3).astype(np.float32) / 65_535), "TIFF of 32-bit floating point, of which no va"),
    "half": (lambda: save(noise(1).astype(np.float16)), "TIFF of 16-bit floating point"),
    "double": (lambda: save(noise(1).astype(np.float64)), "TIFF of 64-bit floating point"),
    "signed 8": (lambda: save(noise(1, np.uint8).astype(np.int8)), "TIFF of 8-bit signed integers"),
    "signed 16": (lambda: save(noise(1).astype(np.int16)), "TIFF of 16-bit signed integers"),
    "32": (lambda: save(noise(3).astype(np.uint32)), "TIFF of 32-bit integers"),
    "32 gray": (lambda: save(noise(1).astype(np.uint32)), "TIFF of 32-bit integers"),
    "16-bit YCbCr": (lambda: save(noise(3), photometric="ycbcr"), "TIFF of YCbCr of 16 bits"),
    "16-bit CIELab": (lambda: save(noise(3), photometric="cielab"), "TIFF of CIELab of 16 bits"),
    "camera raw": (lambda: save(noise(1), photometric="cfa", extratags=[(50_706, 1, 4, (1, 4, 0, 0), True)]), "camera"),
    "preview first": (lambda: save(noise(3, np.uint8), subfiletype=1), "reduced copy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_a_true_reason_and_a_way_out(name):
    make, message = REFUSED[name]
    data = make()
    for function in (decode, decode_rgb):
        with pytest.raises(ImageError, match=message) as caught:
            function(data)
        assert "TIFF" in str(caught.value) and ("convert it" in str(caught.value) or "save it" in str(caught.value))


def test_missing_and_truncated_strips_are_refused():
    for compression in (None, "zlib"):
        data = save(noise(3), compression=compression, rowsperstrip=10)
        place = (
            data.index(struct.pack("<HH", 273, 4)) if struct.pack("<HH", 273, 4) in data else data.index(b"\x11\x01")
        )
        with pytest.raises(ImageError):
            decode(data[: place + 2] + b"\x04\x00\x01\x00\x00\x00" + data[place + 8 :])
        with pytest.raises(ImageError):
            decode(data[:-300])


def test_pages_are_counted_without_reduced_copies_and_masks():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for kind in (0, 1, 0, 4, 0):
            photometric = "mask" if kind == 4 else "minisblack"
            writer.write(noise(1)[..., 0] > 9, subfiletype=kind, photometric=photometric)
    assert decode(file.getvalue()).metadata.frames == 3
    assert decode(save(noise(3, np.uint8))).metadata.frames == 1
    round_trip = bytearray(save(noise(3, np.uint8)))
    with tifffile.TiffFile(io.BytesIO(bytes(round_trip))) as read:
        last = read.pages[0].offset + 2 + 12 * len(read.pages[0].tags)
        round_trip[last : last + 4] = struct.pack("<I", read.pages[0].offset)  # it is its own next page
    assert decode(bytes(round_trip)).metadata.frames == 1


@pytest.mark.parametrize("metadata", [{}, {"axes": "ZYXS"}])
@pytest.mark.parametrize("imagej", [False, True])
def test_descriptions_of_the_file_itself_are_left_out_and_others_are_not(imagej, metadata):
    """tifffile and ImageJ write the shape of all pages there, which an output of the first does not have."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((3, 8, 9, 3), np.uint8), imagej=imagej, photometric="rgb", metadata=metadata)
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as read:
        assert read.pages[0].description
    with Image.open(io.BytesIO(encode(decode(file.getvalue())))) as image:
        assert 270 not in image.getexif()
    data = save(noise(3, np.uint8), description="a cat", metadata=None)
    with Image.open(io.BytesIO(encode(decode(data)))) as image:
        assert image.getexif()[270] == "a cat"
