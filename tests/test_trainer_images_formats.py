"""Formats that are not read, by name, and frames and pages that are counted."""

from __future__ import annotations

import io
import struct

import pytest
from bomb_files import chunk, png
from PIL import Image

from trainer.errors import ImageError
from trainer.images.pictures import decode
from trainer.images.rgb import decode_rgb


def save(kind: str) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL"),
        (b"8BPS\0\x01" + bytes(20), "Photoshop"),
        (b"\x76\x2f\x31\x01" + bytes(20), "OpenEXR"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), "camera raw"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "video"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"FUJIFILMCCD-RAW ", "camera raw"),
    ],
)
def test_formats_that_are_not_read_are_named(data, name):
    for function in (decode, decode_rgb):
        with pytest.raises(ImageError, match=f"{name} is not read: convert it to PNG"):
            function(data)


def test_a_jpeg_of_twelve_bits_is_refused_by_its_bits():
    data = bytearray(save("JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="expected JPEG of 8 bits per channel. Received 12: convert it"):
        decode(bytes(data))


def test_frames_are_counted():
    frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in (0, 120, 240)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("MPO", {})):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
        assert decode(file.getvalue()).metadata.frames == 3, kind
    assert decode(png(8, 8, chunks=chunk(b"acTL", struct.pack(">II", 1 << 30, 0)))).metadata.frames == 1
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "JPEG", "BMP", "JPEG2000"):
        assert decode(save(kind)).metadata.frames == 1, kind
