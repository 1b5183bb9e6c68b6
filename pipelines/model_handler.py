"""Our network in Beam's RunInference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from trainer import predict


class Pair(NamedTuple):
    """An image uint8 [height, width, 3] RGB and its mask uint8 [height, width] of {0, 1}."""

    image: np.ndarray
    mask: np.ndarray


class InpaintModelHandler(ModelHandler[Pair, np.ndarray, predict.Model]):
    """`predict.inpaint_batch` for RunInference; an element that fails gives its exception, alone.

    Args:
        pin: the network, from `predict.find_model`; workers read it from storage, once per process.
        batch_size: elements of a batch; batches are not grown or shrunk.
    """

    def __init__(self, pin: predict.ModelPin, batch_size: int):
        super().__init__()
        self.pin, self._batch_size = pin, batch_size

    def load_model(self) -> predict.Model:
        return predict.load_model(self.pin)

    def run_inference(
        self, batch: Sequence[Pair], model: predict.Model, inference_args: dict[str, Any] | None = None
    ) -> Iterable[np.ndarray | Exception]:
        try:
            return predict.inpaint_batch([pair.image for pair in batch], [pair.mask for pair in batch], model)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [result for pair in batch for result in self.run_inference([pair], model)]

    def batch_elements_kwargs(self) -> dict[str, Any]:
        return {"min_batch_size": self._batch_size, "max_batch_size": self._batch_size}

    def get_metrics_namespace(self) -> str:
        return "pconv"
