"""Colors that are no RGB become sRGB: inks and CIELab, through LittleCMS, which Pillow has built in.

And the profile that says the same as a PNG's gAMA and cHRM, for formats that have no such chunks (ICC.1:2001-04).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 16 << 20  # bytes; those of printing presses have up to four megabytes
UNMANAGED = "CMYK without a usable color profile: converted by (255 - ink) (255 - black) / 255"
_SPACES = {"CMYK": b"CMYK"}
# Of sRGB, in PNG's units of 1/100,000: 1 / 2.2, and x, y of white, red, green, blue.
SRGB_GAMMA, _SRGB_POINTS = 45_455, (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def converter(mode: str, icc: bytes | None) -> Callable[[Image.Image], Image.Image] | None:
    """A function from images of Pillow's ``mode`` to RGB in sRGB, perceptual intent; None if nothing says how.

    Args:
        icc: the profile of the pixels. One that is broken, or of other channels, is as good as none.
    """
    if mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif icc and len(icc) <= MAX_PROFILE and icc[16:20] == _SPACES.get(mode):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        except OSError:
            return None
    else:
        return None
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        transform = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except ImageCms.PyCMSError:
        return None

    def convert(part: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(part, transform)
        assert converted is not None  # None is for images that are changed in place
        return converted

    return convert


def is_srgb(gamma: int, points: tuple[int, ...] | None) -> bool:
    """Whether a PNG's gAMA and cHRM say no more than sRGB, as near as programs write it."""
    near = points is None or all(abs(a - b) <= 1000 for a, b in zip(points, _SRGB_POINTS, strict=True))
    return abs(gamma - SRGB_GAMMA) <= 500 and near


def make_profile(gamma: int, points: tuple[int, ...] | None, is_gray: bool) -> bytes:
    """A color profile of gAMA and cHRM.

    Args:
        gamma: of the chunk, 100,000 times the exponent that gives the stored value of a light.
        points: x and y of white, red, green and blue, times 100,000; None for those of sRGB.
    """
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, min(max(round(256e5 / gamma), 1), 65_535))
    text = b"desc" + bytes(4) + struct.pack(">I", 9) + b"from PNG\0" + bytes(78)
    tags = [(b"desc", text), (b"cprt", b"text" + bytes(4) + b"none\0"), (b"wtpt", _xyz(_D50))]
    if is_gray:
        tags.append((b"kTRC", curve))
    else:
        tags += zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, _colorants(points or _SRGB_POINTS)), strict=True)
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, values, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", start + len(values), len(value))
        values += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(values), bytes(4), 0x02400000, b"mntr", _space(is_gray), b"XYZ ")
    head += struct.pack(">6H", 2001, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return head.ljust(128, b"\0") + table + values


def _space(is_gray: bool) -> bytes:
    return b"GRAY" if is_gray else b"RGB "


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65_536) for value in values))


def _colorants(points: tuple[int, ...]) -> np.ndarray:
    """XYZ of red, green and blue, float [3, 3], as seen under D50 (Bradford)."""
    xs, ys = np.array(points[::2]) / 1e5, np.array(points[1::2]) / 1e5
    xyz = np.stack([xs / ys, np.ones(4), (1 - xs - ys) / ys], 1)  # of white, red, green, blue, at Y = 1
    primaries = xyz[1:] * np.linalg.solve(xyz[1:].T, xyz[0])[:, None]
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ xyz[0])
    return primaries @ (np.linalg.inv(_BRADFORD) @ np.diag(scale) @ _BRADFORD).T
