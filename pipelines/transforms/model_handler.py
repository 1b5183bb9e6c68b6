"""The inpainting network, as engines use it: loaded once per process, and run on batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.command import quiet_imports
from trainer.errors import DeviceError, UserError, is_outage
from trainer.inference.pins import ModelPin

if TYPE_CHECKING:
    from trainer.inference.predict import Model

_UNIT_PIXELS = 512 * 512  # of weight 1
_BATCH_WEIGHT = 16  # of the pairs in memory for one batch
BATCH_PIXELS = _BATCH_WEIGHT * _UNIT_PIXELS

# How many of an engine's threads compute with networks at a time, in one process: one keeps the device busy while
# another's images are put in and taken out. More would only hold more of the device's memory.
_COMPUTING = threading.BoundedSemaphore(2)


def one_of_few() -> threading.Semaphore:
    """A context in which a thread may compute with a network; it waits while enough others do."""
    return _COMPUTING


class Pair(NamedTuple):
    """An image, as `predict.fill_batch` takes it, and its mask uint8 [height, width] of {0, 1}."""

    image: np.ndarray
    mask: np.ndarray


class Filled(NamedTuple):
    """A pair with its holes filled: pixels like the image's, windows computed, and its share of the batch's seconds."""

    pixels: np.ndarray
    windows: int
    seconds: float


class FillModelHandler:
    """`predict.fill_batch` for an engine's pairs of any size: as many make a batch as fit its memory.

    An element that fails gives its exception instead of `Filled`, and takes no other element with it.

    Args:
        pin: the network, from `pins.find_model`; workers read it from storage, once per process.
        batch_size: windows computed together; short batches are padded. None: what suits the device.
        options: of `predict.load_model`: ``precision``, ``device``, ``window``.

    Raises (when it loads the network):
        UserError: the device does not exist, in the words of the command's option.
    """

    def __init__(self, pin: ModelPin, batch_size: int | None, **options):
        self.pin, self._batch_size, self._options = pin, batch_size, options

    def prepare(self) -> None:
        """Imports what computes, ahead of the job: only a main thread can keep quiet what libraries print meanwhile.

        Who launches a job that runs elsewhere does without: TensorFlow takes half a gigabyte.
        """
        with quiet_imports():
            from trainer.inference import predict  # noqa: F401

    def load_model(self) -> Model:
        from trainer.inference import predict

        try:
            return predict.load_model(self.pin, batch_size=self._batch_size, **self._options)
        except DeviceError as error:
            raise UserError(f"--{error}") from None

    def run_inference(self, batch: Sequence[Pair], model: Model) -> list[Filled | Exception]:
        """A result for each pair of a batch."""
        from trainer.inference import predict

        try:
            with one_of_few():
                begin = time.perf_counter()
                pixels, windows = predict.fill_batch([p.image for p in batch], [p.mask for p in batch], model)
                seconds = time.perf_counter() - begin
        except Exception as error:
            if is_outage(error):
                raise
            if len(batch) == 1:
                return [error]
            alone = predict.with_batch_size(model, 1) if model.batch_size else model
            return [result for pair in batch for result in self.run_inference([pair], alone)]
        area = sum(pair.mask.size for pair in batch)
        return [
            Filled(found, count, seconds * pair.mask.size / area)
            for found, count, pair in zip(pixels, windows, batch, strict=True)
        ]

    @property
    def batch_weight(self) -> int:
        """Weight of a full batch."""
        return max(_BATCH_WEIGHT, self._batch_size or 0)

    def weigh(self, pair: Pair) -> int:
        """Weight of a pair in a batch; an image too large for any batch makes one alone."""
        return min(self.batch_weight, -(-pair.mask.size // _UNIT_PIXELS))
