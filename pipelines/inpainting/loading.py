"""Loading for the inpainting job: from the addresses of an image and its mask to upright pixels, or to a reject."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from masks.coverage import hole_ratio
from pipelines.inpainting.inputs import Item
from pipelines.transforms.model_handler import Filled, Pair
from pipelines.transforms.rejects import REJECTED, Reject, Rejected, blame
from trainer.errors import UserError
from trainer.images import budget, pictures, rgb

HOLELESS = "holeless"  # tag of the output for images without holes
_COLOR = re.compile(r"color=#([0-9a-fA-F]{6})(?:,(\d{1,3}))?")


class MaskError(ValueError):
    """The mask cannot be used with its image."""


@dataclass(frozen=True, kw_only=True)
class HoleColor:
    """Pixels that are holes: within ``tolerance`` of ``rgb`` in every channel, both in 0 to 255."""

    rgb: tuple[int, int, int]
    tolerance: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the bytes of an output depend on beside the image, the mask and the model.

    Attributes:
        hole: color of holes in mask files, ``black`` or ``white``; None without mask files.
        holes: what marks holes in the images themselves, ``alpha`` (transparent pixels) or a color; None with mask
            files.
        resize_masks: whether masks of another size are resized to the image's, by nearest neighbor.
        format: of the outputs, one of `trainer.images.FORMATS`.
        quality: of JPEG outputs, 1 to 100.
        max_pixels: images with more are rejected.
    """

    hole: str | None = None
    holes: str | HoleColor | None = None
    resize_masks: bool = False
    format: str = "png"
    quality: int = pictures.QUALITY
    max_pixels: int = rgb.MAX_PIXELS


class Files(NamedTuple):
    """The bytes of an item's image and of its mask files, and the seconds that reading them took."""

    item: Item
    image: bytes
    masks: tuple[bytes, ...]
    seconds: float


class Task(NamedTuple):
    """What writing an output needs beside its pixels.

    Attributes:
        item: what is inpainted.
        metadata: of the image file.
        hole_ratio: of the mask.
        seconds: spent on the item so far.
        copy: the image file, where it is the output as it is: without holes, and of the outputs' format.
    """

    item: Item
    metadata: pictures.Metadata
    hole_ratio: float
    seconds: float
    copy: bytes | None = None


def parse_holes(text: str) -> str | HoleColor:
    """Parses ``alpha``, or ``color=#rrggbb`` with an optional tolerance, such as ``color=#ff00ff,8``."""
    if text == "alpha":
        return text
    found = _COLOR.fullmatch(text)
    if not found or int(found[2] or 0) > 255:
        raise UserError(f"--holes: expected alpha or color=#rrggbb[,tolerance up to 255]. Received {text!r}.")
    red, green, blue = bytes.fromhex(found[1])
    return HoleColor(rgb=(red, green, blue), tolerance=int(found[2] or 0))


# Reading


def read_item(item: Item, settings: Settings) -> Iterator[Files | beam.pvalue.TaggedOutput]:
    """`Files` of one item, or a tagged `Reject`."""
    begin, masks = time.perf_counter(), []
    try:
        with blame(item.image, "read"):
            image = budget.read_file(item.image, settings.max_pixels)
        for address in item.masks:
            with blame(address, "read"):
                masks.append(budget.read_file(address, settings.max_pixels))
                if sum(map(len, masks)) > (most := budget.max_file_bytes(settings.max_pixels)):
                    raise MaskError(f"expected masks of at most {most} bytes together. Received more.")
    except Rejected as lost:
        yield _lost(item, lost.reject)
    else:
        yield Files(item, image, tuple(masks), time.perf_counter() - begin)


def _lost(item: Item, lost: Reject) -> beam.pvalue.TaggedOutput:
    """The reject is the image's, whichever of the two files is to blame."""
    if lost.source != item.image:
        lost = dataclasses.replace(lost, source=item.image, error=f"{lost.error} ({lost.source})")
    return beam.pvalue.TaggedOutput(REJECTED, lost)


# Decoding


def load_item(files: Files, settings: Settings) -> Iterator[tuple[Task, Pair] | beam.pvalue.TaggedOutput]:
    """(`Task`, `Pair`) of one item, upright; tagged (`Task`, `Filled`) if it has no hole; or a tagged `Reject`."""
    begin = time.perf_counter()
    try:
        pair, metadata = _decode(files, settings)
    except Rejected as lost:
        yield _lost(files.item, lost.reject)
        return
    ratio = hole_ratio(pair.mask)
    same_format = {"MPO": "JPEG"}.get(metadata.format, metadata.format) == settings.format.upper()
    copy = files.image if ratio == 0 and same_format else None
    task = Task(files.item, metadata, ratio, files.seconds + time.perf_counter() - begin, copy)
    if ratio == 0:
        yield beam.pvalue.TaggedOutput(HOLELESS, (task, Filled(pair.image, 0, 0.0)))
    else:
        yield task, pair


def _decode(files: Files, settings: Settings) -> tuple[Pair, pictures.Metadata]:
    """Raises `Rejected`."""
    item = files.item
    with blame(item.image, "decode"):
        picture = pictures.decode(files.image, settings.max_pixels)
        pictures.check_encodable(picture, settings.format)
    if not files.masks:
        assert settings.holes is not None
        with blame(item.image, "match"):
            pair = own_holes(picture, settings.holes)
    else:
        image = rgb.turn(picture.pixels, picture.metadata.orientation)
        masks = (
            _decode_mask(*part, item, image.shape[:2], settings) for part in zip(item.masks, files.masks, strict=True)
        )
        pair = Pair(image, np.ascontiguousarray(functools.reduce(np.minimum, masks)))
    with blame(item.image, "match"):
        if not pair.mask.any():
            raise MaskError("expected a valid pixel. Received a mask that is all hole.")
    return pair, picture.metadata


def _decode_mask(address: str, data: bytes, item: Item, size: tuple[int, int], settings: Settings) -> np.ndarray:
    """The mask in one of an item's mask files, of its image's size [height, width]. Raises `Rejected`."""
    assert settings.hole is not None
    with blame(address, "decode"):
        mask = pictures.decode_mask(data, settings.hole, settings.max_pixels)
    with blame(address if item.more_masks else item.image, "match"):
        return fit_mask(mask, size, settings.resize_masks)


def own_holes(picture: pictures.Picture, holes: str | HoleColor) -> Pair:
    """A picture and the mask that it carries itself, both upright; transparent holes become opaque.

    Raises:
        MaskError: see `holes_in`.
    """
    mask = holes_in(picture, holes)
    if holes == "alpha":  # what is filled is to be seen
        picture.pixels[..., -1][mask == 0] = np.iinfo(picture.pixels.dtype).max
    image, mask = (rgb.turn(part, picture.metadata.orientation) for part in (picture.pixels, mask))
    return Pair(image, np.ascontiguousarray(mask))


def holes_in(picture: pictures.Picture, holes: str | HoleColor) -> np.ndarray:
    """The mask that a picture carries itself: uint8 [height, width] of {0, 1}, 1 = valid, as stored.

    Raises:
        MaskError: alpha marks the holes, and the picture has no alpha channel.
    """
    pixels = picture.pixels
    if isinstance(holes, str):
        if not picture.has_alpha:
            raise MaskError("expected an alpha channel, which tells the holes. Received none.")
        return (pixels[..., -1] != 0).astype(np.uint8)
    scale = np.iinfo(pixels.dtype).max // 255
    is_hole = np.ones(pixels.shape[:2], bool)
    for channel, value in enumerate(holes.rgb):
        found = pixels[..., channel if pixels.shape[2] >= 3 else 0]
        low, high = (max(0, value - holes.tolerance) * scale, min(255, value + holes.tolerance) * scale)
        is_hole &= (found >= low) & (found <= high)
    return (~is_hole).astype(np.uint8)


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
