"""Mask files of all the kinds that other programs write: what is a hole in them, and when they are refused."""

from __future__ import annotations

import io
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from masks.codec import read_mask_image
from trainer.errors import ImageError, MaskError
from trainer.images.mask_files import MaskReading, parse_labels, read_mask

HEIGHT, WIDTH = 96, 120
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = (ROWS - 30) ** 2 + (COLUMNS - 80) ** 2 <= 20**2
SQUARE = (abs(ROWS - 70) < 15) & (abs(COLUMNS - 30) < 15)
NOWHERE, BOTH = np.zeros_like(DISC), DISC | SQUARE
BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)


def levels(ground, disc, square=None, dtype=np.uint8) -> np.ndarray:
    """[height, width, ...] of one value or color, with a disc of another and perhaps a square of a third."""
    shape = np.shape(ground)
    found = np.broadcast_to(np.asarray(ground, dtype), (HEIGHT, WIDTH, *shape)).copy()
    found[DISC] = disc
    if square is not None:
        found[SQUARE] = square
    return found


def to_file(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def palette(entries: np.ndarray, colors: dict[int, tuple], kind: str = "PNG", **options) -> bytes:
    image = Image.frombytes("P", entries.shape[::-1], entries.tobytes())
    image.putpalette([value for n in range(256) for value in colors.get(n, BLACK)])
    return to_file(image, kind, **options)


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def png_of_bits(values: np.ndarray, bits: int) -> bytes:
    """A gray PNG of fewer than 8 bits, which Pillow cannot write."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 8)))
    digits = (padded[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1)
    rows = rows[:, : -(-values.shape[1] * bits // 8)]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks
    )


def of_jpeg(pixels: np.ndarray) -> bytes:
    """A PNG of what JPEG made of the pixels."""
    return to_file(np.asarray(Image.open(io.BytesIO(to_file(pixels, "JPEG", quality=80)))))


def white_is_zero(pixels: np.ndarray) -> bytes:
    """A TIFF whose values are the negative of what it shows."""
    return to_file(pixels, "TIFF", tiffinfo={262: 0})


def holes(data: bytes, hole: str | None = "white", **options) -> np.ndarray:
    mask = read_mask(data, MaskReading(hole=hole, **options)).mask
    assert mask.dtype == np.uint8 and mask.max(initial=0) <= 1 and mask.flags.c_contiguous
    return mask == 0


NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
PHOTO = blurred(NOISE, 3)
VOC = {1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}

# What is white in them: of all of these, nothing or the wrong part is by brightness alone.
SILENT = {
    "labels 0 and 1": (to_file(levels(0, 1)), DISC),
    "labels 0 and 1, 16 bits": (to_file(levels(0, 1, dtype=np.uint16)), DISC),
    "0 and 255, 16 bits": (to_file(levels(0, 255, dtype=np.uint16)), DISC),
    "0 and 255, 16 bits, TIFF": (to_file(levels(0, 255, dtype=np.uint16), "TIFF"), DISC),
    "0 and 255, 16 bits, white is zero": (white_is_zero(levels(65535, 65280, dtype=np.uint16)), DISC),
    "0 and 4095, 16 bits": (to_file(levels(0, 4095, dtype=np.uint16)), DISC),
    "0 and 1, 32 bits": (to_file(levels(0, 1, dtype=np.int32), "TIFF"), DISC),
    "0.0 and 1.0": (to_file(levels(0, 1, dtype=np.float32), "TIFF"), DISC),
    "0.0 and 0.25": (to_file(levels(0, 0.25, dtype=np.float32), "TIFF"), DISC),
    "0 and 3, 4 bits": (png_of_bits(levels(0, 3), 4), DISC),
    "PGM": (to_file(levels(0, 1), "PPM"), DISC),
    "100 and 120": (to_file(levels(100, 120)), DISC),
    "200 and 255": (to_file(levels(200, 255)), DISC),
    "RGB of 0 and 1": (to_file(levels((0, 0, 0), (1, 1, 1))), DISC),
    "RGB of 16 bits, 0 and 255": (cv2.imencode(".png", levels(BLACK, WHITE, dtype=np.uint16))[1].tobytes(), DISC),
    "gray paint, JPEG": (to_file(levels(0, 100), "JPEG", quality=90), DISC),
    "labels": (to_file(levels(0, 1, 2)), BOTH),
    "labels, 16 bits": (to_file(levels(0, 700, 1300, dtype=np.uint16)), BOTH),
    "labels, 32 bits": (to_file(levels(0, 3, 9, dtype=np.int32), "TIFF"), BOTH),
    "red paint": (to_file(levels(BLACK, RED)), DISC),
    "blue paint": (to_file(levels(BLACK, BLUE)), DISC),
    "red paint, JPEG": (to_file(levels(BLACK, RED), "JPEG", quality=90), DISC),
    "red paint, of a JPEG": (of_jpeg(levels(BLACK, RED)), DISC),
    "red paint, WebP": (to_file(levels(BLACK, RED), "WEBP", lossless=True), DISC),
    "red paint, PPM": (to_file(levels(BLACK, RED), "PPM"), DISC),
    "a label in red": (to_file(levels(BLACK, (1, 0, 0))), DISC),
    "paint of two colors": (to_file(levels(BLACK, RED, BLUE)), BOTH),
    "yellow paint on white": (to_file(levels(WHITE, (255, 255, 0))), ~DISC),
    "paint of two colors on white": (to_file(levels(WHITE, (255, 255, 0), (0, 255, 255))), ~BOTH),
    "palette": (palette(levels(0, 1), VOC), DISC),
    "palette of labels": (palette(levels(0, 1, 2), VOC), BOTH),
    "palette of labels, one of them pale": (palette(levels(0, 1, 255), VOC), BOTH),
    "palette of labels, GIF": (palette(levels(0, 1, 2), VOC, "GIF"), BOTH),
    "palette without colors": (palette(levels(0, 1), {}), DISC),
    "palette without black": (palette(levels(0, 1, 2), {0: (31, 119, 180), 1: (255, 127, 14), 2: (44, 160, 44)}), BOTH),
    "alpha of black": (to_file(levels((0, 0, 0, 0), (0, 0, 0, 255))), DISC),
    "alpha of gray": (to_file(levels((0, 0), (0, 255))), DISC),
    "alpha of white": (to_file(levels((255, 255, 255, 255), (255, 255, 255, 0))), ~DISC),
    "red paint on transparent black": (to_file(levels((0, 0, 0, 0), (255, 0, 0, 255))), DISC),
    "paint above what cannot be seen": (
        to_file(np.dstack([np.where(DISC[..., None], np.uint8(RED), PHOTO), levels(0, 255)])),
        DISC,
    ),
    "alpha of a palette": (palette(levels(0, 1), {}, transparency=bytes([0, 255])), DISC),
}


@pytest.mark.parametrize("name", SILENT)
def test_masks_that_say_nothing_by_brightness_are_read_by_what_they_hold(name):
    data, white = SILENT[name]
    # JPEG moves the edges of a paint by a pixel or less.
    rim = cv2.dilate(white.astype(np.uint8), np.ones((3, 3))) != cv2.erode(white.astype(np.uint8), np.ones((3, 3)))
    told = ~rim if "JPEG" in name else np.ones_like(rim)
    np.testing.assert_array_equal(holes(data)[told], white[told])
    if "alpha" in name and "white" not in name or "cannot be seen" in name:
        with pytest.raises(MaskError, match="--hole transparent or opaque says which is the hole"):
            holes(data, "black")
    else:
        np.testing.assert_array_equal(holes(data, "black")[told], ~white[told])


ORDINARY = {
    "black and white": to_file(levels(0, 255)),
    "1 bit": to_file(Image.fromarray(levels(0, 255)).convert("1")),
    "16 bits": to_file(levels(0, 65535, dtype=np.uint16)),
    "16 bits, soft": to_file(blurred(levels(0, 255), 3).astype(np.uint16) * 257),
    "RGB": to_file(levels(BLACK, WHITE)),
    "RGB, soft": to_file(blurred(levels(BLACK, WHITE), 2)),
    "soft": to_file(blurred(levels(0, 255), 4)),
    "very soft": to_file(cv2.GaussianBlur(levels(0, 255, 255), (0, 0), 12)),
    "slow": to_file(np.repeat(np.arange(256, dtype=np.uint8)[None], 64, axis=0).repeat(5, axis=1)),
    "smooth": to_file(np.asarray(Image.fromarray(levels(0, 255)).resize((61, 47), Image.Resampling.BILINEAR))),
    "noise": to_file(NOISE[..., 0]),
    "JPEG, gray": to_file(levels(0, 255), "JPEG", quality=40),
    "JPEG, RGB": to_file(levels(WHITE, BLACK), "JPEG", quality=60),
    "JPEG, saved again": of_jpeg(levels(0, 255)),
    "nearly white here and there": to_file(levels(0, 255, 254)),
    "WebP": to_file(levels(BLACK, WHITE), "WEBP", quality=70),
    "AVIF": to_file(levels(BLACK, WHITE), "AVIF", quality=70),
    "JPEG 2000": to_file(levels(BLACK, WHITE), "JPEG2000", irreversible=True, quality_layers=[20]),
    "BMP": to_file(levels(0, 255), "BMP"),
    "TIFF": to_file(levels(0, 255), "TIFF"),
    "GIF": to_file(levels(0, 255), "GIF"),
    "palette": palette(levels(0, 1), {1: WHITE}),
    "palette, upside down": palette(levels(0, 1), {0: WHITE}),
    "two colors": to_file(levels((68, 1, 84), (253, 231, 36))),
    "blue paint on white": to_file(levels(WHITE, BLUE)),
    "transparent everywhere": to_file(levels((0, 0, 0, 0), (255, 255, 255, 0))),
    "no hole": to_file(levels(255, 255)),
    "all hole": to_file(levels(0, 0)),
    "one pixel": to_file(np.uint8([[255]])),
    "a few pixels": to_file(np.uint8([[255, 0, 255], [255, 255, 90]])),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_masks_are_split_by_brightness_at_a_half(name):
    """As OpenCV's gray values from 128 on are white, which is how they were always read."""
    data = ORDINARY[name]
    for hole in ("black", "white"):
        np.testing.assert_array_equal(holes(data, hole), read_mask_image(data, hole) == 0)


def test_a_threshold_decides_alone():
    data = to_file(levels(0, 128, 255))
    for threshold, white in ((0.5, BOTH), (0.6, SQUARE), (1.0, SQUARE)):
        np.testing.assert_array_equal(holes(data, threshold=threshold), white)
    np.testing.assert_array_equal(holes(to_file(levels(0, 100)), threshold=0.5), NOWHERE)
    np.testing.assert_array_equal(holes(to_file(levels(0, 1)), threshold=0.003), DISC)
    photo = to_file(PHOTO)
    np.testing.assert_array_equal(holes(photo, threshold=0.5), cv2.cvtColor(PHOTO, cv2.COLOR_RGB2GRAY) >= 128)
    soft = to_file(blurred(levels(0, 255), 4))  # without a threshold, what soft edges are split at
    np.testing.assert_array_equal(holes(soft, soft=0.6), read_mask_image(soft, "white", 0.6) == 0)


AMBIGUOUS = {
    "three levels": (
        to_file(levels(0, 128, 255)),
        "gray levels 0, 128 and 255 of 255, .* --hole-label 128,255, in pla",
    ),
    "labels and a border": (to_file(levels(0, 15, 255)), "--hole-label 15,255, .*, --threshold 0.5 splits them"),
    "labels on both sides": (to_file(levels(0, 50, 150)), "--hole-label 50,150"),
    "no background": (to_file(levels(1, 2, 3)), "gray levels 1, 2 and 3 of 255, .* --hole-label 1,2,3"),
    "one label": (to_file(levels(1, 1)), "one gray level, 1 of 255: --hole-label"),
    "one gray": (to_file(levels(255, 255, dtype=np.uint16)), "one gray level, 255 of 65535: --hole-label"),
    "labels, JPEG": (to_file(levels(0, 1), "JPEG"), "--hole-label"),
    "two paints": (to_file(levels(RED, (0, 100, 0))), r"two colors, #006400 and #ff0000: .*\(#006400 or #ff0000\)"),
    "one paint": (to_file(levels(RED, RED)), "one color, #ff0000"),
    "black, white and red": (to_file(levels(BLACK, WHITE, RED)), "3 colors: --hole-label with a color"),
    "a photograph": (to_file(PHOTO), r"\d+ colors, as of a photograph"),
    "a photograph, JPEG": (to_file(PHOTO, "JPEG"), r"\d+ colors"),
    "an erased photograph": (
        to_file(np.dstack([PHOTO, levels(255, 0)])),
        "colors and an alpha channel that differ: --hole transparent or opaque",
    ),
    "two masks in one": (to_file(levels((0, 255), (255, 255), (0, 0))), "--hole transparent or opaque"),
    "no number": (to_file(levels(0, np.nan, dtype=np.float32), "TIFF"), "Received nan"),
    "below zero": (to_file(levels(-1, 1, dtype=np.int32), "TIFF"), "Received -1 to 1"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_meant_in_two_ways_is_refused_with_the_option(name):
    data, message = AMBIGUOUS[name]
    for hole in ("black", "white"):
        with pytest.raises(MaskError, match=message):
            holes(data, hole)


def test_alpha_may_be_asked_for():
    erased = to_file(np.dstack([PHOTO, levels(255, 0, 100)]))
    np.testing.assert_array_equal(holes(erased, "transparent"), BOTH)
    np.testing.assert_array_equal(holes(erased, "transparent", threshold=0.3), DISC)
    np.testing.assert_array_equal(holes(erased, "opaque"), ~BOTH)
    one_color = to_file(Image.fromarray(levels(7, 9)), transparency=9)
    np.testing.assert_array_equal(holes(one_color, "transparent"), DISC)
    for data in (to_file(PHOTO), to_file(levels((0, 255), (9, 255))), to_file(levels(0, 255))):
        with pytest.raises(MaskError, match="expected an alpha channel that tells transparent pixels"):
            holes(data, "transparent")


@pytest.mark.parametrize(
    ("labels", "data", "found"),
    [
        ("1", to_file(levels(0, 1, 2)), DISC),
        ("2", to_file(levels(0, 1, 2)), SQUARE),
        ("1-254", to_file(levels(0, 15, 255)), DISC),
        ("0,2", to_file(levels(0, 1, 2)), ~DISC),
        ("300", to_file(levels(0, 300, 44, dtype=np.uint16)), DISC),
        ("9", to_file(levels(0, 3, 9, dtype=np.int32), "TIFF"), SQUARE),
        ("1", to_file(Image.fromarray(levels(0, 255)).convert("1")), DISC),
        ("5", png_of_bits(levels(0, 5, 15), 4), DISC),
        ("1", palette(levels(0, 1, 2), VOC), DISC),
        ("255", palette(levels(0, 1, 255), VOC), SQUARE),
        ("#800000", palette(levels(0, 1, 2), VOC), DISC),
        ("#FF0000", to_file(levels(BLACK, WHITE, RED)), SQUARE),
        ("#ff0000, #ffffff", to_file(levels(BLACK, WHITE, RED)), BOTH),
        ("#808080", to_file(levels(0, 128, 255)), DISC),
        ("1", to_file(levels((0, 0, 0), (1, 1, 1))), DISC),
        ("7", to_file(levels(0, 1, 2)), NOWHERE),
    ],
)
def test_labels_of_holes(labels, data, found):
    np.testing.assert_array_equal(holes(data, None, labels=parse_labels(labels)), found)


def test_labels_need_values_that_are_kept():
    with pytest.raises(MaskError, match="expected labels as gray values or palette entries. Received colors"):
        holes(to_file(levels(BLACK, RED)), None, labels=parse_labels("1"))
    painted = to_file(levels(BLACK, WHITE, RED), "JPEG", quality=90)
    with pytest.raises(MaskError, match="Received a lossy format"):
        holes(painted, None, labels=parse_labels("1"))
    found = holes(painted, None, labels=parse_labels("#ff0000"))  # near it
    assert np.count_nonzero(found != SQUARE) < 0.05 * np.count_nonzero(SQUARE)


@pytest.mark.parametrize("text", ["", "a", "1,", "3-1", "-1", "#ff00", "1.5", "1;2"])
def test_labels_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=f"expected labels, such as .* Received {re.escape(repr(text))}"):
        parse_labels(text)


def test_a_reading_is_complete():
    for options in ({}, {"hole": "white", "labels": ((1, 1),)}, {"hole": "gray"}, {"hole": "white", "threshold": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            MaskReading(**options)


def test_masks_are_read_upright_and_whole():
    block = Image.Exif()
    block[0x0112] = 6  # a quarter turn to the right
    for pixels, kind in ((levels(0, 1), "PNG"), (levels(BLACK, RED), "WEBP"), (levels(0, 255), "JPEG")):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = to_file(pixels, kind, exif=block, **options)
        np.testing.assert_array_equal(holes(data), np.rot90(DISC, -1))
    for data in (to_file(levels(0, 1))[:-40], palette(levels(0, 1), VOC)[:-60], b"no image"):
        with pytest.raises(ImageError):
            holes(data)
    with pytest.raises(ImageError, match="expected at most 100 pixels"):
        read_mask(to_file(levels(0, 1)), MaskReading(hole="white"), max_pixels=100)


def test_how_a_mask_was_read_is_told():
    told = {
        "black and white": to_file(levels(0, 255)),
        "two gray levels, 0 and 1": to_file(levels(0, 1)),
        "2 labels beside 0": to_file(levels(0, 1, 2)),
        "two colors, #000000 and #ff0000": to_file(levels(BLACK, RED)),
        "white from 128 of 255 on": to_file(blurred(levels(0, 255), 4)),
        "alpha": to_file(levels((0, 0), (0, 255))),
    }
    for words, data in told.items():
        assert read_mask(data, MaskReading(hole="white")).read_as == words
