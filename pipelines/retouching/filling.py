"""Pictures of the page: bytes in, bytes out, by the functions of the inpainting job."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from pipelines.inpainting import outputs
from pipelines.inpainting.books import Line
from pipelines.inpainting.inputs import Item
from pipelines.inpainting.loading import BY_CONTENT, Files, Settings, load_item
from pipelines.transforms.model_handler import FillModelHandler, Pair
from pipelines.transforms.rejects import Reject, Rejected, blame
from trainer.images import budget, pictures, rgb

HOLE = "black"  # in the masks that the page sends and saves
SIDE = 2048  # of the pictures that the page shows and on which one paints, at most


class View(NamedTuple):
    """A picture as the page shows it: ``png`` of 8 bits, and the size of the picture itself as viewed."""

    png: bytes
    height: int
    width: int


class Filled(NamedTuple):
    """An output of the job, ``data``, and the fraction of it that was a hole."""

    data: bytes
    hole_ratio: float


class Retoucher:
    """A network, and how pictures are read and written: as the inpainting job does with ``--hole black``.

    Args:
        handler: of the network; it is loaded now.
        max_pixels: larger pictures are refused, as by the job.
    """

    def __init__(self, handler: FillModelHandler, max_pixels: int):
        # Large pictures are painted at a smaller scale, see `SIDE`.
        self.settings = Settings(hole=HOLE, mask_reading=BY_CONTENT, resize_masks=True, max_pixels=max_pixels)
        self._handler, self._model = handler, handler.load_model()

    @property
    def max_file_bytes(self) -> int:
        return budget.max_file_bytes(self.settings.max_pixels)

    def view(self, name: str, data: bytes) -> View:
        """A picture for the page: upright, of 8 bits, with sides of at most `SIDE`. Raises `Rejected`."""
        with blame(name, "decode"):
            picture = pictures.decode(data, self.settings.max_pixels)
            upright = rgb.turn(picture.pixels, picture.metadata.orientation)
            height, width = upright.shape[:2]
            if upright.dtype == np.uint16:
                upright = (upright >> 8).astype(np.uint8)
            shown = dataclasses.replace(picture.metadata, orientation=1, exif=None, xmp=b"", density=None)
            return View(pictures.encode(pictures.Picture(_shrink(upright), shown)), height, width)

    def fill(self, name: str, image: bytes, mask: bytes) -> Filled:
        """What the job writes for a picture and a mask, both files, black being the hole. Raises `Rejected`."""
        item = Item(image=name, mask=f"the mask of {name}", output="")
        (found,) = load_item(Files(item, image, (mask,), 0.0), self.settings)
        if isinstance(found, Line):
            assert isinstance(found.outcome, Reject)
            raise Rejected(found.outcome)
        task, loaded = found
        result = self._handler.run_inference([loaded], self._model)[0] if isinstance(loaded, Pair) else loaded
        return Filled(outputs.make_output(task, result, self.settings), task.hole_ratio)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """uint8 [height, width, channels] with sides of at most `SIDE`."""
    height, width, channels = pixels.shape
    scale = SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], channels)
