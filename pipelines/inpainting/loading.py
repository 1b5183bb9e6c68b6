"""From the addresses of an image and its mask to upright pixels and holes, or to the reason why not."""

from __future__ import annotations

import dataclasses
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
from pipelines.transforms.rejects import FAULTS, REJECTED, Reject, Rejected, blame
from trainer import storage
from trainer.errors import UserError
from trainer.images import pictures
from trainer.images import rgb as images

HOLELESS = "holeless"
_FAULTS = (*FAULTS, MemoryError)
_COLOUR = re.compile(r"color=#([0-9a-fA-F]{6})(?:,(\d{1,3}))?")


class MaskError(ValueError):
    """The mask cannot be used with its image."""


@dataclass(frozen=True, kw_only=True)
class HoleColour:
    """Pixels that are holes: within ``tolerance`` of ``rgb`` in every channel, both in 0 to 255."""

    rgb: tuple[int, int, int]
    tolerance: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """On which the bytes of an output depend, with the image, the mask and the model.

    Attributes:
        hole: ``black`` or ``white``: the colour of holes in mask files; None without mask files.
        holes: ``alpha`` for transparent pixels, a colour, or None with mask files.
        resize_masks: whether masks of another size are brought to the image's, by nearest neighbour.
        format: of `trainer.images.FORMATS`.
        quality: of JPEG.
        max_pixels: images with more are rejected.
    """

    hole: str | None = None
    holes: str | HoleColour | None = None
    resize_masks: bool = False
    format: str = "png"
    quality: int = pictures.QUALITY
    max_pixels: int = images.MAX_PIXELS


class Files(NamedTuple):
    """The bytes of an item's image and of its mask file, if it has one, and the seconds that reading them took."""

    item: Item
    image: bytes
    mask: bytes | None
    seconds: float


class Task(NamedTuple):
    """An item that was read: its metadata, size, hole ratio, and seconds taken so far.

    ``copy`` is the file itself where it can be the output as it is.
    """

    item: Item
    metadata: pictures.Metadata
    size: tuple[int, int]
    hole_ratio: float
    seconds: float
    copy: bytes | None = None


def parse_holes(text: str) -> str | HoleColour:
    """``alpha``, or ``color=#rrggbb`` with an optional tolerance, such as ``color=#ff00ff,8``."""
    if text == "alpha":
        return text
    found = _COLOUR.fullmatch(text)
    if not found or int(found[2] or 0) > 255:
        raise UserError(f"--holes: expected alpha or color=#rrggbb[,tolerance up to 255]. Received {text!r}.")
    return HoleColour(rgb=tuple(bytes.fromhex(found[1])), tolerance=int(found[2] or 0))


# Reading


def holes_in(picture: pictures.Picture, holes: str | HoleColour) -> np.ndarray:
    """The mask that a picture carries itself: uint8 [height, width] of {0, 1}, 1 = valid, as stored.

    Raises:
        MaskError: it has no alpha channel, where alpha is to tell.
    """
    pixels = picture.pixels
    if holes == "alpha":
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
    """A mask of an image's size [height, width]. Raises `MaskError` if it has another and is not to be resized."""
    if mask.shape == size:
        return mask
    if not resize:
        sizes = [f"{width} x {height}" for height, width in (size, mask.shape)]
        raise MaskError(f"expected a mask of the image's size, {sizes[0]} as viewed. Received {sizes[1]}.")
    rows, columns = (
        ((2 * np.arange(wanted) + 1) * there // (2 * wanted))  # the pixel under each centre
        for wanted, there in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


def _lost(item: Item, lost: Reject) -> beam.pvalue.TaggedOutput:
    """The line is the image's, whichever of the two files is to blame."""
    if lost.source != item.image:
        lost = dataclasses.replace(lost, source=item.image, error=f"{lost.error} ({lost.source})")
    return beam.pvalue.TaggedOutput(REJECTED, lost)


def read_item(item: Item) -> Iterator:
    """`Files` of one item, or tagged `Reject`."""
    begin, mask = time.perf_counter(), None
    try:
        with blame(item.image, "read", _FAULTS):
            image = storage.read(item.image)
        if item.mask:
            with blame(item.mask, "read", _FAULTS):
                mask = storage.read(item.mask)
    except Rejected as lost:
        yield _lost(item, lost.reject)
    else:
        yield Files(item, image, mask, time.perf_counter() - begin)


def load_item(files: Files, settings: Settings) -> Iterator:
    """(`Task`, `Pair`) of one item, both upright; tagged (`Task`, pixels) without holes; or tagged `Reject`."""
    begin, item = time.perf_counter(), files.item
    try:
        with blame(item.image, "decode", _FAULTS):
            picture = pictures.decode(files.image, settings.max_pixels)
            pictures.check_encodable(picture, settings.format)
        if files.mask is not None:
            with blame(item.mask, "decode", _FAULTS):
                mask = pictures.decode_mask(files.mask, settings.hole, settings.max_pixels)
        with blame(item.image, "match", _FAULTS):
            if files.mask is not None:
                upright = pictures.turn(picture.pixels, picture.metadata.orientation)
                mask = fit_mask(mask, upright.shape[:2], settings.resize_masks)
            else:
                stored = holes_in(picture, settings.holes)
                if settings.holes == "alpha":  # what is filled is to be seen
                    picture.pixels[..., -1][stored == 0] = np.iinfo(picture.pixels.dtype).max
                upright, mask = (pictures.turn(part, picture.metadata.orientation) for part in (picture.pixels, stored))
            if not mask.any():
                raise MaskError("expected a valid pixel. Received a mask that is all hole.")
    except Rejected as lost:
        yield _lost(item, lost.reject)
        return
    ratio = hole_ratio(mask)
    same_format = {"MPO": "JPEG"}.get(picture.metadata.format, picture.metadata.format) == settings.format.upper()
    copy = files.image if ratio == 0 and same_format else None
    seconds = files.seconds + time.perf_counter() - begin
    task = Task(item, picture.metadata, mask.shape, ratio, seconds, copy)
    if ratio == 0:
        yield beam.pvalue.TaggedOutput(HOLELESS, (task, Filled(upright, 0, 0.0)))
    else:
        yield task, Pair(upright, np.ascontiguousarray(mask))
