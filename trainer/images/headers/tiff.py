"""What a TIFF announces. Specification: TIFF 6.0."""

from __future__ import annotations

import math

import numpy as np

from trainer.errors import ImageError
from trainer.images import tiff_tags
from trainer.images.headers.demand import VISIT_SECONDS, Demand

# Those of Pillow but for LZMA (its dictionary may take gigabytes), obsolete JPEG and the log-luminance ones.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32_771, 32_773, 32_946, 50_000, 50_001}
_STRUCTURE = (256, 257, 258, 259, 277, 278, 279, 284, 322, 323, 324, 325)
_TILE_SECONDS = 30e-6


def read_tiff(data: bytes) -> Demand:
    """What decoding a TIFF takes, whoever does it."""
    tags = tiff_tags.read_tags(data, all_there=True)
    if tags is None or 256 not in tags.values or 257 not in tags.values:
        raise ImageError("the header is broken: expected width and height")
    if twice := tags.repeated.intersection(_STRUCTURE):
        raise ImageError(f"the header is broken: expected each tag once. Received two of {min(twice)}.")

    def value(tag: int, default: int) -> int:
        return int(tags.values[tag].max()) if tag in tags.values else default

    width, height, compression = value(256, 0), value(257, 0), value(259, 1)
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageError(f"expected a TIFF compression of {sorted(_TIFF_COMPRESSIONS)}. Received {compression}.")
    bits, samples = value(258, 1), max(value(277, 1), len(tags.values.get(258, ())))
    across, down = (max(value(322, 1), 1), max(value(323, 1), 1)) if 322 in tags.values else (max(width, 1), 0)
    down = down or max(min(value(278, height), height), 1)
    count = math.ceil(width / across) * math.ceil(height / down)
    tile = math.ceil(across * samples * bits / 8) * down  # bytes decoded at once
    stored = 4 if samples > 1 or bits > 16 else 2 if bits > 8 else 1
    channels = 4 if samples > 3 or (samples == 1 and bits <= 8) else samples
    own = channels * (2 if bits > 8 else 1)
    copy = 0
    if bits > 8 or samples > 4 or samples == 2:  # `tiff_samples` holds the file again, its pixels, and an array of them
        stored, copy = max(stored, math.ceil(samples * bits / 8) + own), len(data)
    # Tiles that share their bytes: each reads and decodes them again.
    compressed = sum(int(tags.values[tag].sum(dtype=np.uint64)) for tag in (279, 325) if tag in tags.values)
    if compressed > 4 * len(data) + tiff_tags.SPARE:
        raise ImageError(f"expected tiles with bytes of their own. Received {compressed} bytes in {len(data)}.")
    seconds = count * (_TILE_SECONDS * (samples if value(284, 1) == 2 else 1) + tile * 5e-9)
    if compression == 7:  # a tile is a JPEG, of at most 100 scans
        scans = data.count(b"\xff\xda")
        scans = scans if compressed <= len(data) else count * min(scans, 100)
        seconds += scans * across * down * samples * VISIT_SECONDS
    extra = tile + 4 * across * down + 3 * tags.bytes + 72 * tags.numbers + copy
    extra += 128 << 20 if compression == 50_000 else 0  # Zstandard's window
    extra += 2 * across * down * samples if compression == 7 else 0
    return Demand(
        width,
        height,
        2 * stored if value(274, 1) != 1 else stored,  # Pillow turns it upright
        own,
        extra,
        seconds,
        f"{count} tiles or strips of {across} x {down} pixels",
        tiff_tags.count_pages(data),
    )
