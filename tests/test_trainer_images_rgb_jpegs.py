"""Which JPEGs may be stored as they are: what TensorFlow reads, what Pillow reads, and nothing else."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from press_profile import PRESS, through_littlecms
from trainer.errors import ImageError
from trainer.images import rgb
from trainer.images.rgb import ImageSpec, JpegLayout, read_jpeg_layout, to_jpeg


def picture(height=40, width=56) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def encode(image=None, kind="JPEG", **options) -> bytes:
    file = io.BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


PLAIN = encode(quality=92)
SCAN = PLAIN.index(b"\xff\xda") + 14


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_rows": 1}, {"comment": b"a"}]
)
def test_files_of_one_scan(options):
    data = encode(**options)
    assert read_jpeg_layout(data) == JpegLayout(1, data.index(b"\xff\xda") + 14)
    assert rgb.is_readable_jpeg(data)


def test_progressive_files_have_more_scans():
    data = encode(progressive=True)
    assert read_jpeg_layout(data).scans == data.count(b"\xff\xda") > 1 and rgb.is_readable_jpeg(data)


def test_what_follows_the_end_does_not_matter():
    assert read_jpeg_layout(PLAIN + b"anything \xff\xc4") == read_jpeg_layout(PLAIN)


@pytest.mark.parametrize("start", [1, 200, 16_383, 16_384, 16_385, 70_000, 1_100_000])
def test_markers_are_found_at_every_place(start):
    data = PLAIN[:SCAN] + b"\xff\x00\xff\xd3" * 7 + b"a" * start
    assert read_jpeg_layout(data) is None and read_jpeg_layout(data + b"\xff") is None
    assert read_jpeg_layout(data + b"\xff\xd9") == JpegLayout(1, SCAN)
    assert read_jpeg_layout(data + b"\xff\xc4\xff\xd9") is None  # a segment, but no scan, and longer than the file


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        PLAIN[:-1],  # cut off: Pillow may not mind, TensorFlow does
        PLAIN[:-2],
        PLAIN[: SCAN - 1],
        PLAIN[1:],
        PLAIN.replace(b"\xff\xdb", b"\xff\xcc", 1),  # arithmetic coding
        PLAIN.replace(b"\xff\xc0", b"\xff\xc3", 1),  # lossless
        PLAIN.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c", 1),  # 12 bits
        PLAIN[:SCAN] + b"\xff\xd9"[:1],
        b"\xff\xd8\xff\xd9",
        encode(picture().convert("L")),
        encode(picture().convert("CMYK")),
        encode(kind="PNG"),
    ],
)
def test_other_bytes_have_no_layout(data):
    assert read_jpeg_layout(data) is None and not rgb.is_readable_jpeg(data)


def test_tables_are_tried():
    table = PLAIN.index(b"\xff\xc4")
    broken = PLAIN[: table + 5] + b"\xff" * 16 + PLAIN[table + 21 :]  # more codes than fit into the lengths
    assert read_jpeg_layout(broken) is not None and not rgb.is_readable_jpeg(broken)


def test_readable_is_what_tensorflow_reads(soak):
    """Half of the files that Pillow takes for whole lack an end; TensorFlow refuses most of these."""
    rng, kept = random.Random(0), 0
    for _ in range(4000 if soak else 200):
        data = bytearray(encode(progressive=True) if rng.random() < 0.2 else PLAIN)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.5:
            del data[len(data) - rng.randint(1, 8) :]
        if rgb.is_readable_jpeg(bytes(data)):
            height, width, _ = tf.io.decode_jpeg(bytes(data), channels=3).shape
            window = [height // 2, width // 3, height - height // 2, 1]
            tf.io.decode_and_crop_jpeg(bytes(data), window, channels=3)
            kept += 1
    assert kept > 40


def test_what_needs_nothing_is_kept():
    for data in (PLAIN, encode(progressive=True), PLAIN + b"trailer"):
        assert to_jpeg(data, ImageSpec()) == (data, 40, 56)
        assert to_jpeg(data, ImageSpec(short_side=40, min_side=40, max_pixels=40 * 56)) == (data, 40, 56)


def test_a_missing_end_is_put_right():
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_jpeg(PLAIN[:-2] + bytes(20))
    encoded, height, width = to_jpeg(PLAIN[:-2] + bytes(20), ImageSpec())
    assert (height, width) == (40, 56) and encoded != PLAIN and encoded.endswith(b"\xff\xd9")
    difference = tf.io.decode_jpeg(encoded).numpy().astype(int) - np.asarray(Image.open(io.BytesIO(PLAIN)), int)
    assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("size", "expected"), [((40, 56), (20, 28)), ((90, 30), (60, 20)), ((600, 21), (571, 20))])
def test_short_side(kind, size, expected):
    data = encode(picture(*size), kind)
    encoded, *found = to_jpeg(data, ImageSpec(short_side=20))
    pixels = tf.io.decode_jpeg(encoded).numpy()
    assert tuple(found) == expected and pixels.shape == (*expected, 3)
    smooth = np.asarray(Image.open(io.BytesIO(data)).resize(expected[::-1], Image.Resampling.BOX), int)
    assert np.abs(pixels - smooth).mean() < 8 < np.abs(pixels[..., ::-1] - smooth).mean()


def test_shrinking_averages():
    rows = np.uint8([[0, 255] * 28, [255, 0] * 28] * 20)
    for kind in ("PNG", "JPEG"):  # single pixels of a chess board average to gray; picking some gives black or white
        encoded, *_ = to_jpeg(encode(Image.fromarray(rows).convert("RGB"), kind), ImageSpec(short_side=20))
        assert np.abs(tf.io.decode_jpeg(encoded).numpy().astype(int) - 127).max() < 30


def test_quality():
    data = encode(kind="PNG")
    sizes = [len(to_jpeg(data, ImageSpec(quality=quality))[0]) for quality in (10, 95, 100)]
    assert sizes[0] < sizes[1] < sizes[2]
    assert to_jpeg(data, ImageSpec()) == to_jpeg(data, ImageSpec(quality=95))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImageSpec(max_pixels=40 * 56 - 1), "expected at most 2239 pixels. Received 56 x 40."),
        (ImageSpec(min_side=41), "expected sides of 41 pixels or more. Received 56 x 40."),
    ],
)
def test_limits(spec, message):
    for data in (PLAIN, encode(kind="PNG")):
        with pytest.raises(ImageError, match=message):
            to_jpeg(data, spec)


def test_sides_that_no_jpeg_can_have():
    data = encode(Image.new("RGB", (70_000, 20)), "PNG")
    with pytest.raises(ImageError, match="expected sides of at most 65500 pixels. Received 70000 x 20."):
        to_jpeg(data, ImageSpec())
    assert to_jpeg(data, ImageSpec(short_side=10))[1:] == (10, 35_000)


@pytest.mark.parametrize(
    "wrong", [{"short_side": 0}, {"quality": 0}, {"quality": 101}, {"max_pixels": 0}, {"min_side": 65_501}]
)
def test_specifications_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected .* Received "):
        ImageSpec(**wrong)


def test_inks_are_stored_as_littlecms_shows_them():
    inks = np.kron(np.random.default_rng(0).integers(0, 256, (5, 6, 4)), np.ones((16, 16, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).save(file, "JPEG", icc_profile=PRESS, quality=100)
    stored = np.asarray(Image.open(io.BytesIO(file.getvalue())))  # the inks, after JPEG
    encoded, *size = to_jpeg(file.getvalue(), ImageSpec(quality=100))
    found = np.asarray(Image.open(io.BytesIO(encoded)), int)
    plain = np.asarray(Image.frombytes("CMYK", stored.shape[1::-1], stored.tobytes()).convert("RGB"), int)
    assert size == [80, 96] and np.abs(found - plain).mean() > 15
    assert np.abs(found - through_littlecms(stored)).mean() < 3
