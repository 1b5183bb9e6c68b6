"""From files to what masks start from: the pure functions that the mask job calls before it draws.

    mask images           -> one Source of kind mask each              for the family files
    video files           -> pairs of frames, spread over the film     for the family occlusion
    folders of frames     -> each two consecutive ones, in name order
    left/F and right/F    -> a stereo pair
    photographs           -> one Source of kind still each

Every file ends in sources or in one reject. Frames are shrunk to what flow is computed at, so that they stay small
between workers.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from masks.codec import HOLES, decode_mask, encode_mask, read_mask_image
from masks.families import occlusion
from masks.sources import KINDS, Source
from pipelines.mask_dataset.videos import VIDEO_SUFFIXES, frame_pairs, local_copy
from pipelines.transforms.rejects import Reject, Rejected, blame, reject
from trainer import storage
from trainer.errors import UserError
from trainer.images import rgb

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What the paper's authors advise for their own masks.
THRESHOLD = 0.6
# Masks of others are shrunk to this many times the shorter side of ours: a crop is enlarged from there.
SPARE = 1.25


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input of the job.

    Attributes:
        kind: ``mask``, ``video``, ``pair`` or ``still``.
        key: a name that is the same wherever the files lie; unique within a kind.
        addresses: of its one file, or of a pair's two.
    """

    kind: str
    key: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How files are read.

    Attributes:
        hole: ``black`` or ``white``: the colour of holes in mask images; None where there are none.
        threshold: share of the range from which on a pixel of a mask image is white.
        side: shorter side of the masks to be drawn, in pixels.
        gap: frames from the first of a video's pair to the second.
        interval: frames from one pair of a video to the next, until there are ``max_pairs``.
        max_pairs: most pairs from one video; longer ones give as many, further apart.
    """

    hole: str | None = None
    threshold: float = THRESHOLD
    side: int = 512
    gap: int = 5
    interval: int = 25
    max_pairs: int = 32

    def __post_init__(self):
        if self.hole is not None and self.hole not in HOLES:
            raise UserError(f"--hole: expected one of {HOLES}. Received {self.hole!r}.")
        if not 0 < self.threshold <= 1:
            raise UserError(f"--threshold: expected more than 0 and at most 1. Received {self.threshold!r}.")
        if min(self.side, self.gap, self.max_pairs) < 1 or self.interval <= self.gap:
            raise UserError(
                "expected 1 or more for side, gap and max_pairs, and interval > gap. "
                f"Received {self.side}, {self.gap}, {self.max_pairs} and {self.interval}."
            )


# Listing


def list_sources(
    mask_files: str | None = None, frames: str | None = None, stills: str | None = None
) -> tuple[list[SourceFile], list[Reject]]:
    """What the addresses (a file, a folder or a glob, local or gs://) hold, sorted by kind and key.

    Args:
        mask_files: mask images.
        frames: video files, told by their suffixes; frame images, of which each two consecutive ones of a folder are a
            pair (``2.png`` comes before ``10.png``), unless the folder is called ``left`` or ``right``: there, the
            files of one name are a stereo pair.
        stills: photographs.

    Returns:
        The inputs, and rejects for files that are neither and for frames without a partner.

    Raises:
        UserError: an address matches no file.
    """
    found, rejects = [], []
    for kind, address in (("mask", mask_files), ("still", stills)):
        if address is not None:
            base = storage.base_of(address)
            found += [
                SourceFile(kind=kind, key=storage.relative(name, base), addresses=(name,)) for name in _find(address)
            ]
    if frames is not None:
        base = storage.base_of(frames)
        folders: dict[str, list[str]] = {}
        for name in _find(frames):
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                found.append(SourceFile(kind="video", key=storage.relative(name, base), addresses=(name,)))
            elif suffix in IMAGE_SUFFIXES:
                folders.setdefault(posixpath.dirname(name), []).append(name)
            else:
                expected = f"one of the suffixes {(*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)}"
                rejects.append(reject(name, "match", ValueError(f"expected {expected}. Received {suffix!r}.")))
        pairs, alone = _pair_up(folders)
        rejects += alone
        for pair in pairs:
            key = "+".join(storage.relative(name, base) for name in pair)
            found.append(SourceFile(kind="pair", key=key, addresses=pair))
    return sorted(found, key=lambda file: (file.kind, file.key)), rejects


def _find(address: str) -> list[str]:
    found = storage.find(address)
    if not found:
        raise UserError(f"{address} matches no file")
    return found


def _pair_up(folders: dict[str, list[str]]) -> tuple[list[tuple[str, str]], list[Reject]]:
    pairs, rejects = [], []
    for folder, names in folders.items():
        parent, side = posixpath.split(folder)
        if side in ("left", "right"):
            other = posixpath.join(parent, "right" if side == "left" else "left")
            partners = {posixpath.basename(name) for name in folders.get(other, ())}
            for name in names:
                if posixpath.basename(name) not in partners:
                    rejects.append(reject(name, "match", ValueError(f"expected a frame of the same name in {other}")))
                elif side == "left":
                    pairs.append((name, posixpath.join(other, posixpath.basename(name))))
            continue
        names = sorted(names, key=_natural)
        pairs += zip(names, names[1:], strict=False)
        if len(names) == 1:
            rejects.append(reject(names[0], "match", ValueError("expected another frame in the same folder")))
    return pairs, rejects


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``2.png`` before ``10.png``; the whole name decides between ``2.png`` and ``02.png``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part) if part.isdecimal() else -1, part if not part.isdecimal() else "") for part in parts] + [
        (0, name)
    ]


# Reading


def read_sources(file: SourceFile, options: SourceOptions) -> Iterator[tuple[str, Source] | Reject]:
    """The sources in one input, with keys such as ``clip.avi#120``, in order; or one reject."""
    name = "+".join(file.addresses)
    try:
        found = _decode_video(file, options) if file.kind == "video" else _decode_images(file, options)
        with blame(name, "flow"):
            sources = found if file.kind in ("mask", "still") else _moving(found)
    except Rejected as lost:
        yield lost.reject
    else:
        yield from sources


def _decode_video(file: SourceFile, options: SourceOptions) -> list[tuple[str, Source]]:
    """Raises `Rejected`."""
    address = file.addresses[0]
    with blame(address, "read"), local_copy(address) as path, blame(address, "decode"):
        pairs = frame_pairs(path, options.gap, options.interval, options.max_pairs)
    return [(f"{file.key}#{index}", pair) for index, pair in pairs]


def _decode_images(file: SourceFile, options: SourceOptions) -> list[tuple[str, Source]]:
    """Raises `Rejected`."""
    name = "+".join(file.addresses)
    with blame(name, "read"):
        data = [storage.read(address) for address in file.addresses]
    with blame(name, "decode"):
        if file.kind == "pair":
            return [(file.key, decode_pair(*data))]
        if file.kind == "still":
            return [(file.key, decode_still(data[0]))]
        return [(file.key, decode_mask_file(data[0], options))]


def _moving(pairs: list[tuple[str, Source]]) -> list[tuple[str, Source]]:
    """Those whose frames occlude something, in either order. Raises ``ValueError`` if none do."""
    found = [pair for pair in pairs if not all(holes.all() for holes in occlusion.bands_both_ways(pair[1]))]
    if not found:
        raise ValueError("expected frames that show something in motion before something else. Found none.")
    return found


def decode_mask_file(data: bytes, options: SourceOptions) -> Source:
    """The mask in an image file, shrunk with the nearest neighbour.

    Raises:
        ValueError: no image, one that is broken or too large, or a mask of one colour.
    """
    rgb.decode_rgb(data)  # OpenCV would fill the missing part of a truncated file with grey, and take any size
    mask = read_mask_image(data, options.hole, options.threshold)
    scale = SPARE * options.side / min(mask.shape)
    if scale < 1:
        size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    if mask.min() == mask.max():
        raise ValueError(
            f"expected a mask of holes and valid pixels. Received {'no hole' if mask.all() else 'one hole'}."
        )
    return Source("mask", (mask,))


def decode_still(data: bytes) -> Source:
    """A photograph. Raises `ImageError` if it cannot be used."""
    return Source("still", (occlusion.shrink(rgb.decode_rgb(data)),))


def decode_pair(first: bytes, second: bytes) -> Source:
    """Two frames. Raises `ImageError` if one cannot be used, ``ValueError`` if their sizes differ."""
    frames = [rgb.decode_rgb(data) for data in (first, second)]
    if frames[0].shape != frames[1].shape:
        sizes = " and ".join(f"{frame.shape[1]} x {frame.shape[0]}" for frame in frames)
        raise ValueError(f"expected two frames of one size. Received {sizes}.")
    return Source("frames", tuple(map(occlusion.shrink, frames)))


# Between workers


def encode_source(source: Source) -> bytes:
    """Kind and pixels, lossless: a line, then a PNG in which arrays stand below each other."""
    if source.kind == "mask":
        pixels = encode_mask(source.pixels[0])
    else:
        pixels = rgb.encode_png(np.concatenate(source.pixels))
    return f"{source.kind}\n".encode() + pixels


def decode_source(data: bytes) -> Source:
    """The source that `encode_source` was given."""
    kind, _, png = data.partition(b"\n")
    if kind == b"mask":
        return Source("mask", (decode_mask(png),))
    pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    return Source(kind.decode(), tuple(np.split(pixels, KINDS[kind.decode()][0])))
