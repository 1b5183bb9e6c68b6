"""300 files of all kinds for the inpainting job, 40 of them bad, and a run to fill them with."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps

from networks import small_config, write_run
from trainer import storage

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GOOD, BAD = 260, 40
BGR = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # OpenCV's order of channels


class Made(NamedTuple):
    """A file: its bytes, how it is to be viewed (None for a bad one), and its mask as viewed."""

    data: bytes
    viewed: np.ndarray | None
    mask: np.ndarray
    orientation: int = 1
    icc: bytes | None = None


def texture(rng, height, width, channels, dtype):
    y, x = np.mgrid[:height, :width]
    waves = 0.5 + 0.3 * np.sin(y / 9 + rng.random())[..., None] * np.cos(x / 7)[..., None]
    noise = rng.random((height, width, channels)) * 0.2
    return np.rint((waves + noise) * np.iinfo(dtype).max).clip(0, np.iinfo(dtype).max).astype(dtype)


def holes(rng, height, width):
    mask = np.ones((height, width), np.uint8)
    top, left = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
    mask[top : top + max(1, height // 3), left : left + max(1, width // 3)] = 0
    return mask


def by_pillow(pixels, kind, mode=None, **options) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def by_opencv(pixels, extension) -> bytes:
    return cv2.imencode(extension, np.ascontiguousarray(pixels[..., BGR[pixels.shape[2]]]))[1].tobytes()


def pillow_view(data: bytes) -> np.ndarray:
    viewed = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    return viewed[..., None] if viewed.ndim == 2 else viewed


# Kind, extension, channels, bits (16: OpenCV writes it).
KINDS = [
    line.split()
    for line in """
JPEG .jpg 3 8,JPEG .jpeg 1 8,PNG .png 3 8,PNG .png 4 8,PNG .PNG 1 8,PNG .png 2 8,PNG .png 3 16,PNG .png 4 16
PNG .png 1 16,WEBP .webp 3 8,WEBP .webp 4 8,TIFF .tif 3 8,TIFF .tiff 3 16""".replace("\n", ",").split(",")[1:]
]
OPTIONS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True, "exact": True}}
OPTIONS["TIFF"] = {"compression": "tiff_lzw"}


def make_good(number: int) -> tuple[str, Made]:
    rng = np.random.default_rng(number)
    kind, extension, channels, bits = KINDS[number % len(KINDS)]
    channels, dtype = int(channels), np.uint8 if bits == "8" else np.uint16
    height, width = rng.integers(3, 90, 2) if number else (300, 500)
    if number in (1, 2):
        height = width = 1
    if number in (14, 15):
        height, width = (1, 200) if number == 14 else (300, 200)
    pixels = texture(rng, height, width, channels, dtype)
    pixels = np.tile(pixels, (10, 10, 1)) if number == 0 else pixels
    orientation, icc = 1, None
    if dtype == np.uint16:
        data, viewed = by_opencv(pixels, extension), pixels
    else:
        extra = {}
        if number % 3 == 0 and channels >= 3:
            extra["icc_profile"] = icc = SRGB
        if number % 4 == 0 and kind != "TIFF":
            block = Image.Exif()
            block[0x0112] = orientation = 1 + number // 4 % 8
            extra["exif"] = block
        data = by_pillow(pixels, kind, **OPTIONS[kind], **extra)
        viewed = pillow_view(data)
    mask = np.ones(viewed.shape[:2], np.uint8)
    if number == 0:
        mask[700:900, 1000:1180] = mask[2500:2510, 4000:4900] = 0
    elif min(viewed.shape[:2]) > 1 and number % 9:  # others have no hole
        mask = holes(rng, *viewed.shape[:2])
    place = number - 1 if number in (51, 53) else number  # of two files the extension differs alone
    folder = ("", "a/", "a/b/", "v1.2/")[place % 4]
    return f"{folder}{place:03d}{extension}", Made(data, viewed, mask, orientation, icc)


def bomb() -> bytes:
    data = bytearray(by_pillow(np.zeros((1, 1, 3), np.uint8), "PNG"))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def make_bad(number: int) -> tuple[str, Made, bytes | None, str]:
    """Name, the file, its mask file, and what the reason must hold."""
    rng = np.random.default_rng(1000 + number)
    pixels = texture(rng, 40, 30, 3, np.uint8)
    mask = holes(rng, 40, 30)
    png, jpeg, wide = (
        by_pillow(pixels, "PNG"),
        by_pillow(pixels, "JPEG"),
        by_opencv(pixels.astype(np.uint16) * 257, ".png"),
    )
    mask_file = by_pillow(mask[..., None] * 255, "PNG")
    cases = [
        ("truncated.png", png[: len(png) * 2 // 3], mask_file, "truncated"),
        ("truncated.jpg", jpeg[:-200], mask_file, "truncated"),
        ("truncated16.png", wide[: len(wide) // 2], mask_file, "cannot be decoded"),
        ("size.png", png, by_pillow(mask[:, 1:, None] * 255, "PNG"), "30 x 40 as viewed. Received 29 x 40"),
        ("turned.png", png, by_pillow(mask.T[..., None] * 255, "PNG"), "30 x 40 as viewed. Received 40 x 30"),
        ("alone.png", png, None, "expected a mask file"),
        ("empty.jpg", b"", mask_file, "the file is empty"),
        ("bomb.png", bomb(), mask_file, "expected at most 100000000 pixels"),
        ("all-hole.png", png, by_pillow(mask[..., None] * 0, "PNG"), "all hole"),
        ("text.webp", b"RIFF, but no image", mask_file, "not an image"),
        ("mask.png", png, mask_file[: len(mask_file) - 30], "(.*mask.png)"),
        ("mask-empty.png", png, b"", "the file is empty (.*mask-empty.png)"),
        ("float.tif", by_pillow(pixels[..., :1].astype(np.float32), "TIFF"), mask_file, "32-bit floating point"),
    ]
    name, data, mask_data, reason = cases[number % len(cases)]
    return f"bad-{number:02d}-{name}", Made(data, None, mask), mask_data, reason


def write_files(folder: str) -> tuple[dict[str, Made], dict[str, str]]:
    """Images in ``in``, masks in ``holes`` and a run in ``run``; the good ones and the reasons of the bad by name."""
    good = dict(make_good(number) for number in range(GOOD))
    for name, made in good.items():
        storage.create(f"{folder}/in/{name}", made.data)
        mask = f"{folder}/holes/{name.rpartition('.')[0]}.png"
        if not storage.exists(mask):
            storage.create(mask, by_pillow(made.mask[..., None] * 255, "PNG"))
    reasons = {}
    for name, made, mask_data, reason in map(make_bad, range(BAD)):
        storage.create(f"{folder}/in/{name}", made.data)
        reasons[name] = reason
        if mask_data is not None:
            storage.create(f"{folder}/holes/{name.rpartition('.')[0]}.png", mask_data)
    write_run(f"{folder}/run", small_config(32))
    return good, reasons
