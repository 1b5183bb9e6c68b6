"""Loading for the inpainting job: from the addresses of an image and its mask to upright pixels, or to a reject."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from masks.coverage import hole_ratio
from pipelines.inpainting.books import Line
from pipelines.inpainting.colors import HoleColor, find_color, find_ring
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.versions import Version, read_version
from pipelines.transforms.model_handler import Filled, Pair
from pipelines.transforms.rejects import Reject, Rejected, blame
from trainer.errors import MaskError, UserError
from trainer.images import budget, mask_files, pictures, rgb

BY_CONTENT = "by content"  # how this version reads mask files; earlier ones split the brightness of all at a half
_COLOR = re.compile(r"color=#([0-9a-fA-F]{6})(?:,(\d{1,3}))?")
_ALPHA = re.compile(r"alpha(?:,(\d{1,3}))?")


@dataclass(frozen=True, kw_only=True)
class HoleAlpha:
    """Pixels that are holes: those whose alpha is less than ``below``, 1 to 255, 255 being opaque.

    255 takes every pixel that can be seen through: of a hole made by a soft eraser its edge, too, which is to be opaque
    in the output as all of the hole is. 1 takes fully transparent pixels alone.
    """

    below: int = 255


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the bytes of an output depend on beside the image, the mask and the model.

    Attributes:
        hole: what marks holes in mask files, one of `trainer.images.HOLES`; None with labels or without mask files.
        hole_label: the labels that mark them, as `mask_files.parse_labels` takes them; None with ``hole``.
        threshold: fraction of the full range from which gray is white, whatever a mask file holds; None reads it by
            what it holds.
        mask_reading: `BY_CONTENT`; None without mask files, and in jobs of earlier versions.
        holes: what marks holes in the images themselves, their alpha or a color; None with mask files.
        grow: pixels by which holes are grown, see `grow_holes`; None is none.
        resize_masks: whether masks of another size are resized to the image's, by nearest neighbor.
        format: of the outputs, one of `trainer.images.FORMATS`.
        quality: of JPEG outputs, 1 to 100.
        max_pixels: images with more are rejected.
    """

    hole: str | None = None
    hole_label: str | None = None
    threshold: float | None = None
    mask_reading: str | None = None
    holes: HoleAlpha | HoleColor | None = None
    grow: int | None = None
    resize_masks: bool = False
    format: str = "png"
    quality: int = pictures.QUALITY
    max_pixels: int = rgb.MAX_PIXELS

    @property
    def reading(self) -> mask_files.MaskReading:
        """How mask files are read."""
        labels = mask_files.parse_labels(self.hole_label) if self.hole_label else ()
        return mask_files.MaskReading(hole=self.hole, labels=labels, threshold=self.threshold)


class Files(NamedTuple):
    """The bytes of an item's image and of its mask files, and the seconds that reading them took.

    ``versions`` are those of the files that were read.
    """

    item: Item
    image: bytes
    masks: tuple[bytes, ...]
    seconds: float
    versions: tuple[Version, ...] = ()


class Task(NamedTuple):
    """What writing an output needs beside its pixels.

    Attributes:
        item: what is inpainted.
        metadata: of the image file.
        hole_ratio: of the mask.
        seconds: spent on the item so far.
        copy: the image file, where it is the output as it is: without holes, and of the outputs' format.
        remarks: more fields of the output's record, on how its mask was read.
        versions: of the files that the output is made of.
    """

    item: Item
    metadata: pictures.Metadata
    hole_ratio: float
    seconds: float
    copy: bytes | None = None
    remarks: dict | None = None
    versions: tuple[Version, ...] = ()


def parse_holes(text: str) -> HoleAlpha | HoleColor:
    """Parses ``alpha`` and ``color=#rrggbb``, with a threshold or tolerance: ``alpha,128``, ``color=#ff00ff,8``."""
    if (alpha := _ALPHA.fullmatch(text)) and 1 <= int(alpha[1] or 255) <= 255:
        return HoleAlpha(below=int(alpha[1] or 255))
    found = _COLOR.fullmatch(text)
    if not found or int(found[2] or 0) > 255:
        raise UserError(
            "--holes: expected alpha or color=#rrggbb, and after a comma the alpha (1 to 255) below which pixels are "
            f"holes, or the tolerance (0 to 255). Received {text!r}."
        )
    red, green, blue = bytes.fromhex(found[1])
    return HoleColor(rgb=(red, green, blue), tolerance=int(found[2] or 0))


# Reading


def read_item(item: Item, settings: Settings) -> Iterator[Files | Line]:
    """`Files` of one item, or the line of a reject."""
    begin, masks = time.perf_counter(), []
    try:
        with blame(item.image, "read"):
            image, version = read_version(item.image, settings.max_pixels)
        versions = [version]
        for address in item.masks:
            with blame(address, "read"):
                mask, version = read_version(address, settings.max_pixels)
                masks.append(mask)
                versions.append(version)
                if sum(map(len, masks)) > (most := budget.max_file_bytes(settings.max_pixels)):
                    raise MaskError(f"expected masks of at most {most} bytes together. Received more.")
    except Rejected as lost:
        yield _lost(item, lost.reject)
    else:
        yield Files(item, image, tuple(masks), time.perf_counter() - begin, tuple(versions))


def _lost(item: Item, lost: Reject) -> Line:
    """The reject is the image's, whichever of the two files is to blame."""
    if lost.source != item.image:
        lost = dataclasses.replace(lost, source=item.image, error=f"{lost.error} ({lost.source})")
    return Line(item.share, lost)


# Decoding


def load_item(files: Files, settings: Settings) -> Iterator[tuple[Task, Pair | Filled] | Line]:
    """(`Task`, `Pair`) of one item, upright; (`Task`, `Filled`) if it has no hole; or the line of a reject."""
    begin = time.perf_counter()
    try:
        pair, metadata, remarks = _decode(files, settings)
    except Rejected as lost:
        yield _lost(files.item, lost.reject)
        return
    ratio = hole_ratio(pair.mask)
    same_format = {"MPO": "JPEG"}.get(metadata.format, metadata.format) == settings.format.upper()
    copy = files.image if ratio == 0 and same_format else None
    seconds = files.seconds + time.perf_counter() - begin
    task = Task(files.item, metadata, ratio, seconds, copy, remarks, files.versions)
    if ratio == 0:
        yield task, Filled(pair.image, 0, 0.0)
    else:
        yield task, pair


def load_pair(item: Item, settings: Settings) -> Pair | str:
    """The image and the mask of one item, upright, or why there are none; a mask without holes is none."""
    for files in read_item(item, settings):
        for found in [files] if isinstance(files, Line) else load_item(files, settings):
            if isinstance(found, Line):
                assert isinstance(found.outcome, Reject)
                return str(found.outcome.error)
            if isinstance(found[1], Pair):
                return found[1]
    return "MaskError: expected a hole. Received a mask without any."


def _decode(files: Files, settings: Settings) -> tuple[Pair, pictures.Metadata, dict]:
    """Image and mask, what the image file keeps beside its pixels, and remarks on the mask. Raises `Rejected`."""
    item, grow, remarks = files.item, settings.grow or 0, dict[str, Any]()
    with blame(item.image, "decode"):
        picture = pictures.decode(files.image, settings.max_pixels)
        pictures.check_encodable(picture, settings.format)
    if not files.masks:
        assert settings.holes is not None
        with blame(item.image, "match"):
            if isinstance(settings.holes, HoleColor) and (ring := find_ring(picture.pixels, settings.holes)):
                remarks["ring"] = ring._asdict()
            pair = own_holes(picture, settings.holes, grow)
    else:
        image = rgb.turn(picture.pixels, picture.metadata.orientation)
        mask, read_as = np.ones(image.shape[:2], np.uint8), dict[str, None]()
        for address, data in zip(item.masks, files.masks, strict=True):
            found = _decode_mask(address, data, item, image.shape[:2], settings)
            mask, read_as[found.read_as] = np.minimum(mask, found.mask), None
        remarks["mask_read_as"] = "; ".join(read_as)
        pair = Pair(image, grow_holes(mask, grow))
    with blame(item.image, "match"):
        if not pair.mask.any():
            raise MaskError("expected a valid pixel. Received a mask that is all hole.")
    return pair, picture.metadata, remarks


def _decode_mask(
    address: str, data: bytes, item: Item, size: tuple[int, int], settings: Settings
) -> mask_files.MaskFile:
    """The mask in one of an item's mask files, of its image's size [height, width]. Raises `Rejected`."""
    with blame(address, "decode"):
        found = mask_files.read_mask(data, settings.reading, settings.max_pixels)
    with blame(address if item.more_masks else item.image, "match"):
        return found._replace(mask=fit_mask(found.mask, size, settings.resize_masks))


def own_holes(picture: pictures.Picture, holes: HoleAlpha | HoleColor, grow: int = 0) -> Pair:
    """A picture and the mask that it carries itself, both upright; holes that alpha marks become opaque.

    Args:
        grow: see `grow_holes`.

    Raises:
        MaskError: see `holes_in`.
    """
    mask = grow_holes(holes_in(picture, holes), grow)
    if isinstance(holes, HoleAlpha):  # what is filled is to be seen
        picture.pixels[..., -1][mask == 0] = np.iinfo(picture.pixels.dtype).max
    image, mask = (rgb.turn(part, picture.metadata.orientation) for part in (picture.pixels, mask))
    return Pair(image, np.ascontiguousarray(mask))


def holes_in(picture: pictures.Picture, holes: HoleAlpha | HoleColor) -> np.ndarray:
    """The mask that a picture carries itself: uint8 [height, width] of {0, 1}, 1 = valid, as stored.

    Raises:
        MaskError: alpha marks the holes, and the picture has no alpha channel or no opaque pixel.
    """
    pixels = picture.pixels
    if isinstance(holes, HoleAlpha):
        if not picture.has_alpha:
            raise MaskError("expected an alpha channel, which tells the holes. Received none.")
        is_valid = pixels[..., -1] >= holes.below * (np.iinfo(pixels.dtype).max // 255)
        if not is_valid.any():
            raise MaskError(
                f"expected a valid pixel. Received none with an alpha of {holes.below} or more: --holes alpha,N takes "
                "only those with less than N as holes."
            )
        return is_valid.astype(np.uint8)
    return (~find_color(pixels, holes)).astype(np.uint8)


def grow_holes(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask whose holes also take what is near them: pixels whose centers are at most ``pixels`` from a hole's.

    So a hole of one pixel becomes a disc of that radius: with 1, a cross of five pixels. The image's border is not
    crossed.

    Args:
        mask: uint8 [height, width] of {0, 1}, 0 = hole.
        pixels: radius in pixels of the image, 0 or more.
    """
    if not pixels or mask.all():
        return mask
    # Only around the holes: distances take four bytes a pixel.
    window = tuple(
        slice(max(int(hit[0]) - pixels, 0), int(hit[-1]) + pixels + 1)
        for hit in (np.flatnonzero(~mask.all(axis=axis)) for axis in (1, 0))
    )
    grown = mask.copy()
    distance = cv2.distanceTransform(np.ascontiguousarray(mask[window]), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown[window] = distance > pixels + 1e-3  # roots of whole numbers, as float32
    return grown


def fit_mask(mask: np.ndarray, size: tuple[int, int], resize: bool) -> np.ndarray:
    """A mask of an image's size [height, width]. Raises `MaskError` if its size differs and ``resize`` is not set."""
    if mask.shape == size:
        return mask
    if not resize:
        sizes = [f"{width} x {height}" for height, width in (size, mask.shape)]
        raise MaskError(f"expected a mask of the image's size, {sizes[0]} as viewed. Received {sizes[1]}.")
    rows, columns = (
        ((2 * np.arange(wanted) + 1) * there // (2 * wanted))  # the pixel under each center
        for wanted, there in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]
