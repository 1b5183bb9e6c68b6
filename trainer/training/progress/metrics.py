"""A training in numbers for Prometheus, see `gauges`.

Ray's names for them begin with ``ray_``: ``ray_pconv_train_step``. Each has the labels ``run``, the run's address, and
``worker``. A worker reports something every ``log_every`` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from trainer.metrics import validation_metrics
from trainer.metrics.intervals import ALL
from trainer.training.progress.events import CheckpointSaved, Pace, Started, StepDone, StepSkipped
from trainer.training.progress.gauges import REPEAT_S, Gauges
from trainer.training.validation import Validated

PREFIX = "pconv_train_"
# What each tells, and a label of its own. Those of the first group every worker has, the others are worker 0's.
METRICS = {
    "step_seconds": ("Seconds of a step.", None),
    "own_seconds": ("Seconds of a step in which the worker does not wait for others: for data, and computing.", None),
    "data_wait_ratio": ("Fraction of the time in which the worker waits for data.", None),
    "images_per_second": ("Examples that all workers train on in a second.", None),
    "step": ("Optimizer steps done.", None),
    "total_steps": ("Optimizer steps of the run.", None),
    "loss": ("Terms of the loss.", "term"),
    "validation": ("Scores of the last validation, over all hole ratios.", "metric"),
    "skipped_steps": ("Steps that were skipped because they were not finite.", None),
    "checkpoint_step": ("Step of the newest checkpoint.", None),
    "checkpoint_seconds": ("Seconds that writing it took, beside training.", None),
    "saved_time_seconds": ("Unix time up to which a checkpoint has what was learned; at first, of the start.", None),
}


class Metrics:
    """The metrics of one worker.

    Args:
        run: address of the run's folder.
        make: ``ray.util.metrics.Gauge``.
        clock: returns Unix seconds.
        repeat_s: seconds after which all values are set again.
    """

    def __init__(
        self,
        run: str,
        worker: int,
        make: Callable[..., Any],
        clock: Callable[[], float] = time.time,
        repeat_s: float = REPEAT_S,
    ):
        self._clock = clock
        self._gauges = Gauges(make, METRICS, PREFIX, {"run": run, "worker": str(worker)}, repeat_s)

    def close(self) -> None:
        """Sets nothing any more: Ray forgets the values."""
        self._gauges.close()

    def record(self, event: Any) -> None:
        """Sets what an event tells of; most tell of nothing."""
        if isinstance(event, Pace):
            speed = event.speed
            self._set(step_seconds=speed.step_seconds, own_seconds=event.own_seconds, data_wait_ratio=speed.data_wait)
        elif isinstance(event, StepDone):
            self._set(images_per_second=event.speed.images_per_second, step=event.step, total_steps=event.total_steps)
            self._set_each("loss", event.terms)
        elif isinstance(event, Validated):
            scores = event.cells[ALL]
            self._set_each("validation", {name: scores[name] for name in validation_metrics()})
        elif isinstance(event, StepSkipped):
            self._set(skipped_steps=event.skipped)
        elif isinstance(event, CheckpointSaved):
            self._set(checkpoint_step=event.step, checkpoint_seconds=event.seconds)
            self._set(saved_time_seconds=self._clock() - event.seconds)
        elif isinstance(event, Started):
            self._set(step=event.step, total_steps=event.total_steps, skipped_steps=0)
            self._set(saved_time_seconds=self._clock())

    def _set(self, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None:
                self._gauges.set(name, value)

    def _set_each(self, name: str, values: dict[str, float]) -> None:
        for each, value in values.items():
            if math.isfinite(value):  # others are events of their own
                self._gauges.set(name, value, each)
