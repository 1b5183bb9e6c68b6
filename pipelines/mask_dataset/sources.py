"""Sources of the mask job: the pure functions that list, read and pack what masks start from.

    mask images           -> one Source of kind mask each                for the family files
    video files           -> pairs of frames, spread over the video      for the family occlusion
    folders of frames     -> pairs of consecutive frames, by name
    left/F and right/F    -> a stereo pair
    photographs           -> one Source of kind still each

Every file ends as sources or as one reject. Frames are shrunk to the size at which flow is computed, so that little is
sent between workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from masks.codec import decode_mask, encode_mask
from masks.families import FAMILIES, occlusion
from masks.sources import KINDS, Source
from pipelines.mask_dataset.plan import Plan
from pipelines.mask_dataset.videos import VIDEO_SUFFIXES, frame_pairs, local_copy
from pipelines.transforms.rejects import Reject, Rejected, blame, reject, reject_name
from trainer import storage
from trainer.errors import Denied, UserError
from trainer.images import budget, mask_files, rgb
from trainer.storage import recognize
from trainer.storage.names import is_text

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What the paper's authors recommend for their own masks.
THRESHOLD = 0.6
# Mask files are shrunk to this many times the shorter side of the masks to draw: crops are enlarged from there.
SPARE = 1.25
# Where each kind of source comes from.
_FLAGS = {"mask": "--mask-files", "frames": "--frames", "still": "--stills"}


class NamedSource(NamedTuple):
    """A source and its key, such as ``clip.avi#120``: the same wherever the file lies, unique within a kind."""

    key: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One input of the job.

    Attributes:
        kind: ``mask``, ``video``, ``pair`` or ``still``.
        key: a name that is the same wherever the files lie; unique within a kind.
        addresses: address of its one file, or of the two of a pair.
    """

    kind: str
    key: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read files.

    Attributes:
        hole: what marks holes in mask images, one of `trainer.images.HOLES`; empty with labels, or without images.
        hole_label: the labels that mark them, as `mask_files.parse_labels` takes them; empty with ``hole``.
        threshold: fraction of the full range from which a pixel of a mask image is white, whatever that holds; None
            reads it by what it holds, and soft edges at `THRESHOLD`.
        side: shorter side of the masks to draw, in pixels.
        gap: frames from the first to the second of a pair in a video.
        interval: frames from one pair of a video to the next, as long as there are at most ``max_pairs``.
        max_pairs: maximum number of pairs from one video; in longer videos they are further apart.
        max_pixels: images and frames with more are rejected.

    Raises:
        ValueError: an attribute is out of range.
    """

    hole: str = ""
    hole_label: str = ""
    threshold: float | None = None
    side: int = 512
    gap: int = 5
    interval: int = 25
    max_pairs: int = 32
    max_pixels: int = rgb.MAX_PIXELS

    def __post_init__(self):
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: expected a fraction in (0, 1]. Received {self.threshold!r}.")
        if self.hole or self.hole_label:
            _ = self.reading
        if min(self.side, self.gap, self.max_pairs) < 1 or self.interval <= self.gap:
            raise ValueError(
                "expected 1 or more for side, gap and max_pairs, and interval > gap. "
                f"Received {self.side}, {self.gap}, {self.max_pairs} and {self.interval}."
            )

    @property
    def reading(self) -> mask_files.MaskReading:
        """How mask images are read. Raises ``ValueError`` if an attribute is out of range."""
        labels = mask_files.parse_labels(self.hole_label) if self.hole_label else ()
        return mask_files.MaskReading(hole=self.hole or None, labels=labels, threshold=self.threshold, soft=THRESHOLD)


def find_files(options: argparse.Namespace, plan: Plan) -> tuple[list[SourceFile], SourceOptions, list[Reject]]:
    """Files that the plan's families start from, how to read them, and rejects for those of no known kind.

    Raises:
        UserError: an option is missing, contradicts another, or matches no file.
    """
    needed = {kind for family in plan.families for kind in FAMILIES[family].source_kinds}
    given = {"mask": options.mask_files, "frames": options.frames, "still": options.stills}
    for family in plan.families:
        kinds = FAMILIES[family].source_kinds
        if kinds and not any(given[kind] for kind in kinds):
            raise UserError(f"--generator {family}: expected {' or '.join(_FLAGS[kind] for kind in kinds)}.")
    for kind, address in given.items():
        if address and kind not in needed:
            raise UserError(f"{_FLAGS[kind]}: none of {', '.join(plan.families)} starts from such files.")
    if bool(options.mask_files) != bool(options.hole or options.hole_label):
        raise UserError(
            "--hole: expected with, and only with, --mask-files: the color of holes, black or white, or --hole-label."
        )
    if options.hole and options.hole_label:
        raise UserError("--hole-label: cannot be combined with --hole, in whose place it says what marks holes")
    try:
        reading = SourceOptions(
            hole=options.hole or "",
            hole_label=options.hole_label or "",
            threshold=options.threshold,
            side=options.size,
            max_pixels=options.max_pixels or rgb.MAX_PIXELS,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if not needed:
        return [], reading, []
    for kind, address in given.items():
        if address:
            expected = "videos, frames or stereo pairs" if kind == "frames" else "image files"
            recognize.require_files(_FLAGS[kind], address, expected)
    found, unmatched = list_sources(mask_files=options.mask_files, frames=options.frames, stills=options.stills)
    if not found:
        first = unmatched[0]
        raise UserError(f"no file that masks can start from: {first.source}: {first.error}")
    return found, reading, [dataclasses.replace(one, split=plan.split) for one in unmatched]


def list_sources(
    mask_files: str | None = None, frames: str | None = None, stills: str | None = None
) -> tuple[list[SourceFile], list[Reject]]:
    """The files at the addresses (a file, a folder or a glob, local or in a bucket), sorted by kind and key.

    Args:
        mask_files: mask images.
        frames: video files, recognized by their suffixes, and frame images. Consecutive frames of a folder are pairs
            (``2.png`` comes before ``10.png``), unless the folder is called ``left`` or ``right``: there, files of the
            same name are a stereo pair.
        stills: photographs.

    Returns:
        The inputs, and rejects for files of other kinds, for names that are not UTF-8, and for frames alone.

    Raises:
        UserError: an address matches no file.
    """
    found: list[SourceFile] = []
    rejects: list[Reject] = []
    for kind, address in (("mask", mask_files), ("still", stills)):
        if address is not None:
            found += _find(kind, address, rejects)
    if frames is not None:
        folders: dict[str, list[str]] = {}
        for file in _find("video", frames, rejects):
            (name,) = file.addresses
            suffix = posixpath.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                found.append(file)
            elif suffix in IMAGE_SUFFIXES:
                folders.setdefault(name.rpartition("/")[0], []).append(name)
            else:
                expected = f"one of the suffixes {(*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)}"
                rejects.append(reject(name, "match", ValueError(f"expected {expected}. Received {suffix!r}.")))
        pairs, alone = _pair_up(folders)
        rejects += alone
        base = storage.select(frames).base
        for pair in pairs:
            key = "+".join(storage.relative(name, base) for name in pair)
            found.append(SourceFile(kind="pair", key=key, addresses=pair))
    return sorted(found, key=lambda file: (file.kind, file.key)), rejects


def _find(kind: str, address: str, rejects: list[Reject]) -> list[SourceFile]:
    """The files at an address; those with names that are not UTF-8 are appended to ``rejects``."""
    selected, lost = storage.select(address), dict[str, Denied]()
    names = selected.find(lost)
    if not names:
        raise next(iter(lost.values()), UserError(f"{address} matches no file"))
    base = selected.base
    rejects += [reject(folder, "list", error) for folder, error in lost.items()]
    rejects += [reject_name(name) for name in names if not is_text(name)]
    names = [name for name in names if is_text(name)]
    return [SourceFile(kind=kind, key=storage.relative(name, base), addresses=(name,)) for name in names]


def _pair_up(folders: dict[str, list[str]]) -> tuple[list[tuple[str, str]], list[Reject]]:
    pairs: list[tuple[str, str]] = []
    rejects: list[Reject] = []
    for folder, names in folders.items():
        parent, _, side = folder.rpartition("/")
        if side in ("left", "right"):
            other = f"{parent}/{'right' if side == 'left' else 'left'}"
            partners = {posixpath.basename(name) for name in folders.get(other, ())}
            for name in names:
                if posixpath.basename(name) not in partners:
                    rejects.append(reject(name, "match", ValueError(f"expected a frame of the same name in {other}")))
                elif side == "left":
                    pairs.append((name, storage.join(other, posixpath.basename(name))))
            continue
        names = sorted(names, key=_natural)
        pairs += zip(names, names[1:], strict=False)
        if len(names) == 1:
            rejects.append(reject(names[0], "match", ValueError("expected another frame in the same folder")))
    return pairs, rejects


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``2.png`` before ``10.png``; the whole name decides between ``2.png`` and ``02.png``."""
    parts = re.split(r"(\d+)", name)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (0, name)]


def read_sources(file: SourceFile, options: SourceOptions) -> Iterator[NamedSource | Reject]:
    """The sources in one input, in order; or one reject."""
    try:
        found = _decode_video(file, options) if file.kind == "video" else _decode_images(file, options)
        with blame("+".join(file.addresses), "flow"):
            sources = found if file.kind in ("mask", "still") else _moving(found)
    except Rejected as lost:
        yield lost.reject
    else:
        yield from sources


def _decode_video(file: SourceFile, options: SourceOptions) -> list[NamedSource]:
    """Raises `Rejected`."""
    address = file.addresses[0]
    with blame(address, "read"), local_copy(address) as path, blame(address, "decode"):
        pairs = frame_pairs(path, options.gap, options.interval, options.max_pairs, options.max_pixels)
    return [NamedSource(f"{file.key}#{first}", pair) for first, pair in pairs]


def _decode_images(file: SourceFile, options: SourceOptions) -> list[NamedSource]:
    """Raises `Rejected`."""
    name = "+".join(file.addresses)
    with blame(name, "read"):
        data = [budget.read_file(address, options.max_pixels) for address in file.addresses]
    with blame(name, "decode"):
        if file.kind == "pair":
            return [NamedSource(file.key, decode_pair(data[0], data[1], options.max_pixels))]
        if file.kind == "still":
            return [NamedSource(file.key, decode_still(data[0], options.max_pixels))]
        return [NamedSource(file.key, decode_mask_file(data[0], options))]


def _moving(pairs: list[NamedSource]) -> list[NamedSource]:
    """Pairs whose frames occlude something, in either order. Raises ``ValueError`` if there is no such pair."""
    found = [pair for pair in pairs if not all(holes.all() for holes in occlusion.bands_both_ways(pair.source))]
    if not found:
        raise ValueError("no motion: expected frames in which something moves in front of something else")
    return found


def decode_mask_file(data: bytes, options: SourceOptions) -> Source:
    """The mask in an image file, shrunk with nearest-neighbor interpolation.

    Raises:
        ValueError: not an image, a broken or too large one, or a mask that is all hole or has no hole.
    """
    mask = mask_files.read_mask(data, options.reading, options.max_pixels).mask
    scale = SPARE * options.side / min(mask.shape)
    if scale < 1:
        size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    if mask.min() == mask.max():
        raise ValueError(
            f"expected a mask with holes and valid pixels. Received {'no' if mask.all() else 'only'} holes."
        )
    return Source("mask", (mask,))


def decode_still(data: bytes, max_pixels: int = rgb.MAX_PIXELS) -> Source:
    """A photograph. Raises `ImageError` if it cannot be used."""
    return Source("still", (occlusion.shrink(rgb.decode_rgb(data, max_pixels)),))


def decode_pair(first: bytes, second: bytes, max_pixels: int = rgb.MAX_PIXELS) -> Source:
    """Two frames. Raises `ImageError` if one cannot be used, ``ValueError`` if their sizes differ."""
    frames = [rgb.decode_rgb(data, max_pixels) for data in (first, second)]
    if frames[0].shape != frames[1].shape:
        sizes = " and ".join(f"{frame.shape[1]} x {frame.shape[0]}" for frame in frames)
        raise ValueError(f"expected two frames of one size. Received {sizes}.")
    return Source("frames", tuple(map(occlusion.shrink, frames)))


def encode_source(source: Source) -> bytes:
    """Kind and pixels, lossless: a line, then a PNG with the arrays stacked vertically."""
    if source.kind == "mask":
        pixels = encode_mask(source.pixels[0])
    else:
        pixels = rgb.encode_png(np.concatenate(source.pixels))
    return f"{source.kind}\n".encode() + pixels


def decode_source(data: bytes) -> Source:
    """The source that `encode_source` was given."""
    head, _, png = data.partition(b"\n")
    kind = head.decode()
    if kind == "mask":
        return Source(kind, (decode_mask(png),))
    pixels = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB))
    return Source(kind, tuple(np.split(pixels, KINDS[kind].arrays)))
