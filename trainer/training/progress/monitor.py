"""One worker's view of the run: validation, what is reported, TensorBoard's logs with scores and sample images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from trainer.checkpoints.pointers import Score
from trainer.config import TrainConfig
from trainer.metrics import METRICS, validation_metrics
from trainer.metrics.intervals import ALL, interval_tag
from trainer.tensorboard import EventLog
from trainer.training.progress.events import LogsFailed, Report, StepDone
from trainer.training.validation import HeldOut, Validated, Validator, read_pairs


class Monitor:
    """All workers validate; worker 0 reports and logs.

    Args:
        run: address of the run's folder.
        held_out: what to validate on; None for no validation.
        step: steps done when this process began.

    Attributes:
        validated: the last validation.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: str,
        strategy: tf.distribute.Strategy,
        worker: int,
        report: Report,
        held_out: HeldOut | None,
        step: int,
    ):
        self._config, self._strategy, self._worker = config, strategy, worker
        self._held_out = held_out
        self._validator: Validator | None = None
        self._report = report
        self._log = EventLog(run, step) if worker == 0 else None
        self.validated: Validated | None = None

    def show_step(self, event: StepDone, scalars: Mapping[str, float]) -> None:
        """Reports and logs a step; ``scalars`` by tag are logged as well."""
        if self._log is None:
            return
        self._report(event)
        logged = {f"loss/{name}": value for name, value in event.terms.items()} | dict(scalars)
        if event.speed.images_per_second is not None:
            logged["speed/images_per_second"] = event.speed.images_per_second
            logged["speed/data_wait"] = event.speed.data_wait
        self._log.add_scalars(event.step, logged)
        self._flush(event.step)

    def validates(self, step: int) -> bool:
        """Whether the weights after ``step`` are to be scored."""
        every = self._config.validation.every
        return self._held_out is not None and (step % every == 0 or step == self._config.total_steps)

    def validate(self, step: int, weights: Mapping[str, np.ndarray]) -> Score:
        """Scores weights, given by variable path, on the held-out pairs; all workers must call this together."""
        validator = self._load(weights)
        self.validated = validator.validate(step)
        cells = self.validated.cells
        if self._log is not None:
            self._report(self.validated)
            for bucket, cell in cells.items():
                group = "validation" if bucket == ALL else f"validation_{interval_tag(bucket)}"
                self._log.add_scalars(step, {f"{group}/{name}": cell[name] for name in validation_metrics()})
            if self._config.validation.pictures:
                self._draw(step, validator, *validator.examples())
        metric = self._config.checkpoint.best
        # Means leave out the pairs that failed; weights that fail on any are never the best.
        value = math.nan if cells[ALL]["failed"] else cells[ALL][metric]
        return Score(metric=metric, value=value, higher_is_better=METRICS[metric].higher_is_better)

    def rescore(self, step: int, weights: Mapping[str, np.ndarray]) -> None:
        """Scores weights that an earlier process has logged the scores of; all workers must call this together."""
        if self.validates(step):
            self.validated = self._load(weights).validate(step)

    def draw_batch(self, step: int, weights: Mapping[str, np.ndarray], targets: tf.Tensor, masks: tf.Tensor) -> None:
        """Logs sample images of a training batch, if nothing is held out."""
        count = self._config.validation.pictures
        if self._log is not None and self._held_out is None and count:
            self._draw(step, self._load(weights), targets[:count].numpy(), masks[:count].numpy())

    def _load(self, weights: Mapping[str, np.ndarray]) -> Validator:
        if self._validator is None:
            pairs, count = [], 0
            if self._held_out is not None:
                split, workers = self._config.validation.split, self._config.scaling.workers
                pairs, count = read_pairs(self._held_out, split, self._worker, workers), self._held_out.pairs
            self._validator = Validator(self._strategy, self._config, pairs, count)
        self._validator.load(weights)
        return self._validator

    def _draw(self, step: int, validator: Validator, targets: np.ndarray, masks: np.ndarray) -> None:
        if self._log is not None:
            self._log.add_image(step, "pictures", validator.draw(targets, masks))
            self._flush(step)

    def _flush(self, step: int) -> None:
        if self._log is not None and (error := self._log.flush(step)):
            self._report(LogsFailed(why=str(error)))

    def close(self) -> None:
        """Writes what is left of the logs."""
        if self._log is not None and (error := self._log.close()):
            self._report(LogsFailed(why=str(error), last=True))
