"""What a run shows of itself while it trains: events, TensorBoard's logs, validation, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from trainer.checkpoints.pointers import Score
from trainer.config import TrainConfig
from trainer.metrics import METRICS, validation_metrics
from trainer.metrics.intervals import ALL, interval_tag
from trainer.tensorboard import EventLog
from trainer.training.validation import HeldOut, Validator, read_pairs

Arrays = Mapping[str, np.ndarray]


class Observer:
    """One worker's: all of them validate, worker 0 reports and logs.

    Args:
        run: address of the run's folder.
        report: called with a dict per event.
        held_out: what to validate on.
        step: steps that were done when this process began.

    Attributes:
        validated: ``step`` and ``cells`` (`intervals.summarize`) of the last validation.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: str,
        strategy: tf.distribute.Strategy,
        worker: int,
        report: Callable[[dict], None],
        held_out: HeldOut | None,
        step: int,
    ):
        self._config, self._strategy, self._worker, self._report = config, strategy, worker, report
        self._held_out = held_out
        self._validator: Validator | None = None
        self._log = EventLog(run, step) if worker == 0 else None
        self.validated: dict | None = None

    def show_step(self, step: int, phase: str, terms: dict, reading: dict, scalars: dict) -> None:
        """Reports and logs a step's loss terms and the meter's reading; ``scalars`` by tag are logged besides."""
        self._report({"event": "step", "step": step, "phase": phase, "terms": terms, **reading})
        scalars = {f"loss/{name}": value for name, value in terms.items()} | scalars
        if reading["images_per_second"] is not None:
            scalars |= {f"speed/{name}": reading[name] for name in ("images_per_second", "data_wait")}
        self._log.add_scalars(step, scalars)
        self._flush(step)

    def validates(self, step: int) -> bool:
        """Whether the weights after ``step`` are to be scored."""
        every = self._config.validation.every
        return self._held_out is not None and (step % every == 0 or step == self._config.total_steps)

    def validate(self, step: int, weights: Arrays) -> Score:
        """Scores weights by variable path on all workers' held-out pairs; all workers must call this together."""
        if self._validator is None:
            workers = self._config.scaling.workers
            pairs = read_pairs(self._held_out, self._config.validation.split, self._worker, workers)
            self._validator = Validator(self._strategy, self._config, pairs, self._held_out.pairs)
        self._validator.load(weights)
        cells = self._validator.validate()
        self.validated = {"step": step, "cells": cells}
        if self._worker == 0:
            self._report({"event": "validation", **self.validated})
            for bucket, cell in cells.items():
                group = "validation" if bucket == ALL else f"validation_{interval_tag(bucket)}"
                self._log.add_scalars(step, {f"{group}/{name}": cell[name] for name in validation_metrics()})
            if self._config.validation.pictures:
                self._draw(step, *self._validator.examples())
        metric = self._config.checkpoint.best
        # Means leave out the pairs that failed; weights that fail on any are never the best.
        value = math.nan if cells[ALL]["failed"] else cells[ALL][metric]
        return Score(metric=metric, value=value, higher_is_better=METRICS[metric].higher_is_better)

    def draw_batch(self, step: int, weights: Arrays, targets: tf.Tensor, masks: tf.Tensor) -> None:
        """Logs pictures of a training batch, where there is nothing held out."""
        if self._held_out is None and self._config.validation.pictures:
            if self._validator is None:
                self._validator = Validator(self._strategy, self._config, [], 0)
            self._validator.load(weights)
            count = self._config.validation.pictures
            self._draw(step, targets[:count].numpy(), masks[:count].numpy())

    def _draw(self, step: int, targets: np.ndarray, masks: np.ndarray) -> None:
        self._log.add_image(step, "pictures", self._validator.draw(targets, masks))
        self._flush(step)

    def _flush(self, step: int) -> None:
        if error := self._log.flush(step):
            self._report({"event": "logs", "step": step, "why": str(error)})

    def close(self) -> None:
        """Writes what is left of the logs."""
        if self._log is not None and (error := self._log.close()):
            self._report({"event": "logs", "step": None, "why": str(error)})
