"""Our network in Beam's RunInference."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from trainer.errors import DeviceError, UserError
from trainer.inference import predict

_PIXELS = 512 * 512
_WEIGHT = 16  # of a batch: pixels in memory, in pictures of 512 x 512
BATCH_PIXELS = _WEIGHT * _PIXELS


class Pair(NamedTuple):
    """An image, as `predict.inpaint_batch` takes it, and its mask uint8 [height, width] of {0, 1}."""

    image: np.ndarray
    mask: np.ndarray


class Filled(NamedTuple):
    """A pair with its holes filled: pixels like the image's, windows computed, and its share of the seconds taken."""

    pixels: np.ndarray
    windows: int
    seconds: float


class InpaintModelHandler(ModelHandler[Pair, Any, predict.Model]):
    """`predict.inpaint_batch` for RunInference; an element that fails gives its exception, alone.

    Args:
        pin: the network, from `predict.find_model`; workers read it from storage, once per process.
        batch_size: elements of a batch; batches are not grown or shrunk, short ones are padded. None: what suits the
            device.
        options: of `predict.load_model`: ``precision``, ``device``, ``window``.
    """

    def __init__(self, pin: predict.ModelPin, batch_size: int | None, **options):
        super().__init__()
        self.pin, self._batch_size, self._options = pin, batch_size, options

    def load_model(self) -> predict.Model:
        return predict.load_model(self.pin, batch_size=self._batch_size, **self._options)

    def run_inference(
        self, batch: Sequence[Pair], model: predict.Model, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Any]:
        """One result for each element: pixels, or the exception."""
        return [result.pixels if isinstance(result, Filled) else result for result in self._fill(batch, model)]

    def _fill(self, batch: Sequence[Pair], model: predict.Model) -> list[Filled | Exception]:
        begin = time.perf_counter()
        try:
            pixels, windows = predict.fill_batch([pair.image for pair in batch], [pair.mask for pair in batch], model)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            alone = predict.with_batch_size(model, 1) if model.batch_size else model
            return [result for pair in batch for result in self._fill([pair], alone)]
        seconds = time.perf_counter() - begin
        area = sum(pair.mask.size for pair in batch)
        return [
            Filled(found, count, seconds * pair.mask.size / area)
            for found, count, pair in zip(pixels, windows, batch, strict=True)
        ]

    def batch_elements_kwargs(self) -> dict[str, Any]:
        size = self._batch_size or 1
        return {"min_batch_size": size, "max_batch_size": size}

    def get_metrics_namespace(self) -> str:
        return "pconv"


class FillModelHandler(InpaintModelHandler):
    """The same with `Filled` for results, for elements of any size: as many make a batch as memory is meant for.

    It belongs to a command: its errors speak of options.
    """

    def load_model(self) -> predict.Model:
        try:
            return super().load_model()
        except DeviceError as error:
            raise UserError(f"--{error}") from None

    def run_inference(
        self, batch: Sequence[Pair], model: predict.Model, inference_args: dict[str, Any] | None = None
    ) -> list[Filled | Exception]:
        return self._fill(batch, model)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        most = max(_WEIGHT, self._batch_size or 0)
        return {"min_batch_size": most, "max_batch_size": most, "element_size_fn": _Weight(most)}


class _Weight:
    """What a keyed pair takes of a batch's weight; a picture too large for any batch is one alone."""

    def __init__(self, most: int):
        self._most = most

    def __call__(self, element: tuple[Any, Pair]) -> int:
        return min(self._most, -(-element[1].mask.size // _PIXELS))
