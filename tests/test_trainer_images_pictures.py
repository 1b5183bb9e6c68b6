"""Image files at their own depth: what goes in comes out, in readers that are not ours."""

from __future__ import annotations

import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from masks.codec import read_mask_image
from trainer.errors import ImageError
from trainer.images.mask_files import MaskReading, read_mask
from trainer.images.pictures import Metadata, Picture, decode, encode
from trainer.images.rgb import read_header, turn, turn_back

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height, width, channels, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def save(pixels: np.ndarray, kind: str, **options) -> bytes:
    """By Pillow, which has 8 bits."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, kind, **options)
    return file.getvalue()


def png_by_hand(pixels: np.ndarray) -> bytes:
    """A PNG without filters, from its specification."""
    height, width, channels = pixels.shape
    rows = pixels.astype(f">u{pixels.itemsize}").tobytes()
    step = len(rows) // height
    raw = b"".join(b"\0" + rows[n : n + step] for n in range(0, len(rows), step))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def read_png(data: bytes) -> np.ndarray:
    """By OpenCV, which has 16 bits, as [height, width, channels]; gray with alpha comes as four channels."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    found = found[..., None] if found.ndim == 2 else found
    return found[..., [2, 1, 0, 3][: found.shape[2]]] if found.shape[2] >= 3 else found


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_every_depth_and_number_of_channels(channels, dtype):
    pixels = noise(7, 5, channels, dtype)
    picture = decode(png_by_hand(pixels))
    assert (
        picture.pixels.dtype == dtype and picture.metadata.format == "PNG" and picture.has_alpha == (channels in (2, 4))
    )
    np.testing.assert_array_equal(picture.pixels, pixels)
    data = encode(picture)
    assert data == encode(picture)
    theirs = read_png(data)
    np.testing.assert_array_equal(theirs[..., [0, 3]] if channels == 2 else theirs, pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.mode in ({1: ("L", "I;16"), 2: ("LA", "RGBA"), 3: ("RGB",), 4: ("RGBA",)}[channels])
    assert data[24:26] == bytes([8 * pixels.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]])
    np.testing.assert_array_equal(decode(data).pixels, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_color_of_a_png_becomes_alpha(channels, dtype):
    pixels = noise(7, 5, channels, dtype)
    key = [int(value) for value in pixels[2, 3]]
    pixels[4:, 1] = key
    content = struct.pack(f">{channels}H", *key)
    chunk = struct.pack(">I", len(content)) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))
    data = png_by_hand(pixels)
    found = decode(data[:33] + chunk + data[33:]).pixels
    np.testing.assert_array_equal(found[..., :-1], pixels, strict=True)
    np.testing.assert_array_equal(found[..., -1] == 0, (pixels == key).all(-1))
    assert found[0, 0, -1] == np.iinfo(dtype).max


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_both_depths(compression, dtype, channels):
    pixels = noise(7, 5, channels, dtype)
    file = io.BytesIO()
    photometric = "rgb" if channels >= 3 else "minisblack"
    extra = ["unassalpha"] if channels == 4 else None
    plain = pixels[..., 0] if channels == 1 else pixels
    tifffile.imwrite(file, plain, photometric=photometric, compression=compression, extrasamples=extra)
    np.testing.assert_array_equal(decode(file.getvalue()).pixels, pixels)


def test_other_kinds_of_image():
    colors, gray = noise(9, 8, 3), noise(9, 8, 1)
    np.testing.assert_array_equal(decode(save(colors, "BMP")).pixels, colors)
    np.testing.assert_array_equal(decode(save(colors, "WEBP", lossless=True)).pixels, colors)
    alpha = noise(9, 8, 4)
    np.testing.assert_array_equal(decode(save(alpha, "WEBP", lossless=True, exact=True)).pixels, alpha)
    jpeg = save(colors, "JPEG")
    np.testing.assert_array_equal(decode(jpeg).pixels, np.asarray(Image.open(io.BytesIO(jpeg))))
    jpeg = save(gray, "JPEG")
    assert decode(jpeg).pixels.shape == (9, 8, 1)
    palette = Image.fromarray(colors).quantize(200)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=3)
    expected = np.asarray(palette.convert("RGB"))
    found = decode(file.getvalue()).pixels
    np.testing.assert_array_equal(found[..., :3], expected)
    np.testing.assert_array_equal(found[..., 3], np.where(np.asarray(palette) == 3, 0, 255))
    bits = gray[..., 0] > 99
    file = io.BytesIO()
    Image.fromarray(bits).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue()).pixels[..., 0], bits * np.uint8(255))
    file = io.BytesIO()
    Image.fromarray(colors).convert("CMYK").save(file, "JPEG", icc_profile=SRGB)
    cmyk = decode(file.getvalue())
    assert cmyk.pixels.shape == (9, 8, 3) and cmyk.metadata.icc is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_viewers_do_and_can_be_undone(orientation):
    pixels = noise(4, 7, 3)
    block = Image.Exif()
    block[0x0112] = orientation
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = save(pixels, kind, exif=block, **options)
        with Image.open(io.BytesIO(data)) as image:
            viewed = np.asarray(ImageOps.exif_transpose(image))
        picture = decode(data)
        np.testing.assert_array_equal(turn(picture.pixels, picture.metadata.orientation), viewed)
        np.testing.assert_array_equal(turn_back(turn(pixels, orientation), orientation), pixels)
        for name in ("png", "webp"):
            with Image.open(io.BytesIO(encode(picture, name))) as image:
                assert image.getexif().get(0x0112, 1) == picture.metadata.orientation
                np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), viewed)
        if kind != "TIFF":
            assert picture.metadata.orientation == orientation
            np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_profile_is_kept_and_the_thumbnail_is_not(kind):
    block = Image.Exif()
    block[0x0112], block[0x010E] = 6, "a description"
    content, thumbnail = block.tobytes(), save(noise(4, 3, 3), "JPEG")
    place = len(content) - 6  # of the second directory, in the TIFF that follows the prefix
    count = 2  # of tags in the first directory
    content = content[: 16 + 12 * count] + struct.pack(">I", place) + content[20 + 12 * count :]
    second = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, place + 30, 0x0202, 4, 1, len(thumbnail), 0)
    data = save(noise(8, 6, 3), "JPEG", icc_profile=SRGB, exif=content + second + thumbnail)
    assert thumbnail in data
    out = encode(decode(data), kind)
    with Image.open(io.BytesIO(out)) as image:
        assert image.info["icc_profile"] == SRGB
        assert dict(image.getexif()) == {0x0112: 6, 0x010E: "a description"}
        assert thumbnail not in out
    wide = Picture(noise(8, 6, 3, np.uint16), Metadata(8, SRGB))
    again = decode(encode(wide))
    np.testing.assert_array_equal(again.pixels, wide.pixels)
    assert again.metadata == Metadata(8, SRGB, "PNG")


def test_webp_is_lossless_below_transparency_too():
    pixels = noise(20, 30, 4)
    pixels[:9, ..., 3] = 0
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(Picture(pixels), "webp")))), pixels)
    gray = noise(20, 30, 1)
    found = np.asarray(Image.open(io.BytesIO(encode(Picture(gray), "webp"))))
    np.testing.assert_array_equal(found, gray.repeat(3, 2))


def test_jpeg_quality_is_passed_on():
    pixels = noise(64, 64, 3)
    sizes = [len(encode(Picture(pixels), "jpeg", quality)) for quality in (20, 60, 95)]
    assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[2]


@pytest.mark.parametrize(
    ("picture", "kind", "message"),
    [
        (Picture(np.zeros((2, 2, 4), np.uint8)), "jpeg", "no transparency"),
        (Picture(np.zeros((2, 2, 3), np.uint16)), "jpeg", "8 bits per channel. Received 16"),
        (Picture(np.zeros((2, 2, 3), np.uint16)), "webp", "8 bits per channel. Received 16"),
        (Picture(np.zeros((1, 16_384, 3), np.uint8)), "webp", "at most 16383 pixels. Received 16384 x 1"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(picture, kind, message):
    with pytest.raises(ImageError, match=message):
        encode(picture, kind)


def bomb(width=40_000, height=40_000) -> bytes:
    """A PNG of a few bytes that promises many pixels, 1600 million by default."""
    data = bytearray(png_by_hand(noise(1, 1, 1)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _read(data: bytes, hole: str) -> np.ndarray:
    return read_mask(data, MaskReading(hole=hole)).mask


def test_broken_files_are_refused_with_a_reason():
    png, wide = save(noise(40, 40, 3), "PNG"), png_by_hand(noise(40, 40, 3, np.uint16))
    cases = {
        b"": "empty",
        b"no image": "not an image",
        png[: len(png) // 2]: "truncated",
        wide[: len(wide) // 2]: "cannot be decoded",
        save(noise(40, 40, 3), "JPEG")[:-300]: "truncated",
        bomb(): "at most 100000000 pixels",
        save(
            np.zeros((4, 4, 1), np.int32), "TIFF"
        ): "8 or 16 bits per channel. Received TIFF of 32-bit signed integers.*: convert it",
        save(noise(8, 8, 3), "PPM"): "expected one of JPEG, .* Received PPM",
    }
    for data, message in cases.items():
        with pytest.raises(ImageError, match=message):
            decode(data)
    with pytest.raises(ImageError, match="at most 1599 pixels. Received 40 x 40"):
        decode(png, max_pixels=1599)
    for data in [b"", b"no image", png[: len(png) // 2], save(noise(40, 40, 1), "JPEG")[:-300], bomb()]:
        with pytest.raises(ImageError):
            _read(data, "black")


def test_a_hundred_megapixels_are_not_warned_of():
    """Pillow does so from 89 on; here a warning would be an error."""
    header = read_header(bomb(9500, 10_000))
    assert (header.height, header.width) == (10_000, 9500)


def test_masks_are_read_upright():
    block = Image.Exif()
    block[0x0112] = 6
    mask = np.zeros((4, 7, 1), np.uint8)
    mask[:, :2] = 255
    data = save(mask, "PNG", exif=block)
    np.testing.assert_array_equal(_read(data, "black"), turn(mask[..., 0] // 255, 6))
    np.testing.assert_array_equal(_read(data, "white"), 1 - turn(mask[..., 0] // 255, 6))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [False, True])
def test_gray_masks_of_every_depth_are_as_opencv_reads_them(bits, transparent):
    """Plain ones are not read by OpenCV. Values on either side of one half, of which each depth has its own."""
    values = np.linspace(0, 2**bits - 1, 1 << min(bits, 4)).astype(int)
    packed = "".join(f"{value:0{bits}b}" for value in values)
    row = bytes(int(packed[n : n + 8].ljust(8, "0"), 2) for n in range(0, len(packed), 8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(">H", 1))] if transparent else []
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(framed)
    found = _read(data, "black")
    np.testing.assert_array_equal(found, read_mask_image(data, "black"))
    np.testing.assert_array_equal(found[0], values * 2 > 2**bits - 1)
    np.testing.assert_array_equal(_read(data, "white"), 1 - found)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_mutated_files_are_pictures_or_refused(soak):
    rng = random.Random(1)
    files = [png_by_hand(noise(20, 20, c, d)) for c in (1, 2, 3, 4) for d in (np.uint8, np.uint16)]
    files += [save(noise(20, 20, 3), kind, icc_profile=SRGB) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    refused = 0
    count = 5000 if soak else 300
    for _ in range(count):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(min(len(data), 300))] ^= 1 << rng.randrange(8)
        try:
            picture = decode(bytes(data), max_pixels=1_000_000)
        except ImageError:
            refused += 1
            continue
        assert picture.pixels.dtype in (np.uint8, np.uint16) and picture.pixels.shape[2] in (1, 2, 3, 4)
        encode(picture)
    assert 0.2 * count < refused < 0.98 * count
