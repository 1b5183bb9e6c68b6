"""masks.codec against files written and read by Pillow, and by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from masks import codec


def random_mask(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8)


def image_bytes(pixels: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 7), (8, 8), (97, 161), (128, 128)])
def test_round_trip_and_header(size):
    for mask in (random_mask(*size), np.zeros(size, np.uint8), np.ones(size, np.uint8)):
        data = codec.encode_mask(mask)
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
        width, height, bit_depth, color_type = struct.unpack(">IIBB", data[16:26])
        assert (height, width) == size and bit_depth == 1 and color_type == 0
        decoded = codec.decode_mask(data)
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, mask)


def test_encoded_white_is_valid():
    mask = random_mask(13, 21)
    image = Image.open(io.BytesIO(codec.encode_mask(mask)))
    assert image.mode == "1"
    assert np.array_equal(np.asarray(image), mask == 1)


def test_decodes_a_png_written_by_hand():
    """10 x 2 pixels: one filter byte 0 and two bytes a row, the first pixel in the highest bit, 1 = white = valid."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = bytes([0, 0b10110000, 0b01000000, 0, 0b00000001, 0b10000000])
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 2, 1, 0, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = [[1, 0, 1, 1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
    assert codec.decode_mask(data).tolist() == expected


def test_same_mask_same_bytes():
    mask = random_mask(64, 64)
    assert codec.encode_mask(mask) == codec.encode_mask(np.asfortranarray(mask)) == codec.encode_mask(mask.copy())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((4, 4), 255, np.uint8), "expected values 0 .hole. and 1 .valid.. Received values up to 255"),
        (np.ones((4, 4), np.float32), r"expected a uint8 array \[height, width\]. Received float32 \[4, 4\]"),
        (np.ones((4, 4, 1), np.uint8), r"Received uint8 \[4, 4, 1\]"),
        (np.ones((0, 4), np.uint8), r"Received uint8 \[0, 4\]"),
        (None, "Received"),
    ],
)
def test_encode_refuses_what_is_no_mask(wrong, message):
    with pytest.raises(ValueError, match=message):
        codec.encode_mask(wrong)


BROKEN = {
    "empty": b"",
    "text": b"not an image at all",
    "truncated png": codec.encode_mask(random_mask(64, 64))[:-20],
    "truncated jpeg": image_bytes(random_mask(64, 64) * 255, "JPEG")[:-50],
}


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_image_are_refused(name):
    data = BROKEN[name]
    for decode in (codec.decode_mask, lambda data: codec.read_mask_image(data, hole="black")):
        with pytest.raises(ValueError, match=f"data: expected a complete image file. Received {len(data)} bytes"):
            decode(data)


def test_decode_mask_refuses_gray():
    with pytest.raises(ValueError, match="read_mask_image reads other masks. Received gray values, such as 254"):
        codec.decode_mask(image_bytes(np.array([[0, 254], [255, 255]], np.uint8)))


def test_read_mask_image_thresholds_at_half_of_the_range():
    data = image_bytes(np.array([[0, 1, 127, 128, 254, 255]], np.uint8))
    assert codec.read_mask_image(data, hole="black").tolist() == [[0, 0, 0, 1, 1, 1]]
    assert codec.read_mask_image(data, hole="white").tolist() == [[1, 1, 1, 0, 0, 0]]
    assert codec.read_mask_image(data, hole="black", threshold=0.6).tolist() == [[0, 0, 0, 0, 1, 1]]
    assert codec.read_mask_image(data, hole="black", threshold=1.0).tolist() == [[0, 0, 0, 0, 0, 1]]
    deep = image_bytes(np.array([[0, 32767, 32768, 65535]], np.uint16))
    assert codec.read_mask_image(deep, hole="black").tolist() == [[0, 0, 1, 1]]


def test_read_mask_image_of_any_kind():
    mask = random_mask(31, 17)
    gray = mask * np.uint8(255)
    color = np.repeat(gray[..., None], 3, axis=2)
    transparent = np.dstack([color, np.zeros_like(gray)])
    palette = Image.fromarray(gray).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    files = [codec.encode_mask(mask), image_bytes(gray), image_bytes(color), image_bytes(transparent)]
    files += [
        buffer.getvalue(),
        image_bytes(gray, "BMP"),
        image_bytes(gray, "TIFF"),
        image_bytes(color, "WEBP", lossless=True),
    ]
    for data in files:
        black = codec.read_mask_image(data, hole="black")
        white = codec.read_mask_image(data, hole="white")
        assert black.dtype == white.dtype == np.uint8
        assert np.array_equal(black, mask) and np.array_equal(white, 1 - mask)


def test_read_mask_image_is_binary_for_jpeg():
    """The gray values around edges that JPEG makes become 0 or 1; flat areas keep their side."""
    gray = np.zeros((32, 48), np.uint8)
    gray[:, 20:] = 255
    mask = codec.read_mask_image(image_bytes(gray, "JPEG", quality=30), hole="black")
    assert mask.max() == 1 and not mask[:, :18].any() and mask[:, 22:].all()


def test_hole_color_is_never_guessed():
    data = codec.encode_mask(random_mask(4, 4))
    with pytest.raises(TypeError):
        codec.read_mask_image(data)
    with pytest.raises(ValueError, match=r"hole: expected one of \('black', 'white'\). Received 'gray'"):
        codec.read_mask_image(data, hole="gray")
    for threshold in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected more than 0 and at most 1"):
            codec.read_mask_image(data, hole="black", threshold=threshold)
