"""Real image files, made with Pillow, OpenCV or by hand: pixels upright in RGB, or the reason why not."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from trainer.errors import ImageError
from trainer.images.rgb import MAX_PIXELS, Header, decode_rgb, encode_jpeg, encode_png, read_header

HEIGHT, WIDTH = 20, 30


def make_pixels(channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)


def save(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(mode, color, format, **options):
    return save(Image.new(mode, (WIDTH, HEIGHT), color), format, **options)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_rgb_bit_for_bit(format):
    pixels = make_pixels()
    data = save(Image.fromarray(pixels), format)
    np.testing.assert_array_equal(decode_rgb(data), pixels, strict=True)
    assert read_header(data) == Header(format, "RGB", HEIGHT, WIDTH, True)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_colors_are_in_their_places(options):
    # One color per quarter: channels swapped, or axes, would be far off.
    pixels = np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.uint8)
    pixels[:HEIGHT, :WIDTH], pixels[:HEIGHT, WIDTH:], pixels[HEIGHT:, :WIDTH] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    found = decode_rgb(save(Image.fromarray(pixels), "JPEG", quality=100, **options))
    assert found.shape == pixels.shape
    inner = [np.s_[y : y + 8, x : x + 8] for y in (4, HEIGHT + 8) for x in (4, WIDTH + 8)]
    for part in inner:
        np.testing.assert_allclose(found[part].astype(int), pixels[part], atol=4)


@pytest.mark.parametrize(
    ("data", "color"),
    [
        (flat("L", 77, "PNG"), (77, 77, 77)),
        (flat("L", 77, "JPEG", quality=100), (77, 77, 77)),
        (flat("1", 1, "PNG"), (255, 255, 255)),
        (flat("LA", (77, 0), "PNG"), (77, 77, 77)),
        (flat("RGBA", (10, 200, 90, 0), "PNG"), (10, 200, 90)),  # what is fully transparent keeps its color
        (flat("RGB", (10, 200, 90), "PNG", transparency=(10, 200, 90)), (10, 200, 90)),
        (flat("RGBA", (10, 200, 90, 3), "WEBP", lossless=True, exact=True), (10, 200, 90)),
        # (255 - C) (255 - K) / 255 of each ink.
        (flat("CMYK", (0, 255, 0, 0), "JPEG", quality=100), (255, 0, 255)),
        (flat("CMYK", (51, 102, 0, 85), "TIFF"), (136, 102, 170)),
    ],
)
def test_other_modes_become_rgb(data, color):
    found = decode_rgb(data)
    assert found.dtype == np.uint8 and found.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(found.astype(int), np.broadcast_to(color, found.shape), atol=1)


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes(transparency):
    colors = np.array([[255, 0, 0], [0, 130, 255], [7, 8, 9]], np.uint8)
    indices = np.random.default_rng(1).integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colors.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    for format in ("PNG", "GIF") if not isinstance(transparency, bytes) else ("PNG",):
        np.testing.assert_array_equal(decode_rgb(save(image, format, **options)), colors[indices])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_gray_keep_their_range(format):
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    found = decode_rgb(save(Image.fromarray(levels), format))
    exact = levels / 65535 * 255
    assert np.abs(found - exact[..., None]).max() <= 0.5
    assert found.min() == 0 and found.max() == 255


def test_sixteen_bits_of_color_keep_their_range():
    levels = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    found = decode_rgb(cv2.imencode(".png", levels[..., ::-1])[1].tobytes())
    assert np.abs(found - levels / 65535 * 255).max() <= 1


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "signed integers"), (np.float32, "floating point")])
def test_channels_of_32_bits_are_refused(dtype, kind):
    data = save(Image.fromarray(np.ones((HEIGHT, WIDTH), dtype)), "TIFF")
    with pytest.raises(ImageError, match=f"expected 8 or 16 bits per channel. Received TIFF of 32-bit {kind}"):
        decode_rgb(data)


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ((255, 0, 0), (0, 255, 0))]
    found = decode_rgb(save(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(found, np.asarray(frames[0]))


def store_turned(upright, orientation):
    """What a camera stores whose viewer must apply ``orientation`` (table 6 of the EXIF 2.3 standard)."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],  # row 0 is the right side, column 0 the top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],  # row 0 is the left side, column 0 the bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return np.ascontiguousarray(stored), exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientations_are_turned_upright(orientation, format):
    pixels = make_pixels()
    stored, exif = store_turned(pixels, orientation)
    data = save(Image.fromarray(stored), format, exif=exif)
    np.testing.assert_array_equal(decode_rgb(data), pixels)
    header = read_header(data)
    assert {header.height, header.width} == {HEIGHT, WIDTH} and header.upright == (orientation == 1)


@pytest.mark.parametrize("orientation", range(9))
def test_orientation_of_jpegs_agrees_with_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(make_pixels()), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_rgb(data), np.asarray(expected))
    assert read_header(data).upright == (orientation in (0, 1))


@pytest.mark.parametrize("orientation", [9, 600])
def test_orientations_that_mean_nothing_turn_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(make_pixels()), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_rgb(data), make_pixels())
    assert read_header(data).upright


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Metadata Warning|Possibly corrupt)")
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_broken_exif_block_does_not_cost_the_pixels(format):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 1, "maker", {0x9000: b"0220"}
    data = save(Image.fromarray(make_pixels()), format, exif=exif)
    start = data.index(b"Exif\0\0") + 6 if format == "JPEG" else data.index(b"eXIf") + 4
    expected = decode_rgb(data)
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, 12, 2):
            broken[start + place] = rng.integers(0, 256)
        if format == "PNG":
            size = int.from_bytes(data[start - 8 : start - 4], "big")
            broken[start + size : start + size + 4] = struct.pack(">I", zlib.crc32(broken[start - 4 : start + size]))
        np.testing.assert_array_equal(decode_rgb(bytes(broken)), expected)
        assert read_header(bytes(broken)).upright


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(format, share):
    data = save(Image.fromarray(make_pixels()), format)
    with pytest.raises(ImageError):
        decode_rgb(data[: int(len(data) * share)])


def test_truncation_is_the_reason_given():
    for format in ("JPEG", "PNG"):
        data = save(Image.fromarray(make_pixels()), format)
        with pytest.raises(ImageError, match="the pixels cannot be decoded: .*truncated"):
            decode_rgb(data[: int(len(data) * 0.9)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 100, "the file is not an image"),
        (b"A text.\n" * 20, "the file is not an image"),
        (b"<html><body>404</body></html>", "the file is not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 10, "the (file is not an image|header is broken)"),
        (b"\x89PNG\r\n\x1a\n", "the (file is not an image|header is broken)"),
    ],
)
def test_what_is_no_image_is_refused(data, reason):
    for function in (decode_rgb, read_header):
        with pytest.raises(ImageError, match=reason):
            function(data)


def test_no_file_is_run_as_a_program(monkeypatch):
    """EPS is a program, which Pillow hands to Ghostscript where that is installed."""
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: ran.append(args))
    data = save(Image.fromarray(make_pixels()), "EPS")
    assert data.startswith(b"%!PS")
    for function in (decode_rgb, read_header):
        with pytest.raises(ImageError, match="the file is not an image"):
            function(data)
    assert not ran


def promise(height, width):
    """A PNG of 70 bytes whose header promises height x width pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_promises_of_too_many_pixels_are_refused_unread(size):
    for function in (decode_rgb, read_header):
        with pytest.raises(ImageError, match=f"expected at most {MAX_PIXELS} pixels"):
            function(promise(*size))


def test_the_limit_is_an_argument():
    data = save(Image.fromarray(make_pixels()), "PNG")
    assert decode_rgb(data, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    for function in (decode_rgb, read_header):
        with pytest.raises(ImageError, match="expected at most 599 pixels. Received 30 x 20"):
            function(data, max_pixels=HEIGHT * WIDTH - 1)


def test_encode_png_is_lossless_in_other_readers():
    pixels = make_pixels()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
    np.testing.assert_array_equal(decode_rgb(encode_png(pixels)), pixels)


def test_encode_jpeg_is_near_in_other_readers():
    pixels = cv2.resize(make_pixels()[:4, :6], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    image = Image.open(io.BytesIO(encode_jpeg(pixels)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))
    assert np.abs(np.asarray(image, int) - pixels).mean() < 6  # with red and blue swapped: about 80
    assert len(encode_jpeg(pixels, quality=10)) < len(encode_jpeg(pixels)) < len(encode_jpeg(pixels, quality=100))
