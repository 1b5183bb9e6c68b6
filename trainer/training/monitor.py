"""Progress reporting: events, speed, non-finite losses, TensorBoard logs, validation scores, sample images.

Workers report events; ``str(event)`` is the line that people read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.checkpoints.pointers import Score
from trainer.command import duration
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.metrics import METRICS, validation_metrics
from trainer.metrics.intervals import ALL, interval_tag
from trainer.tensorboard import EventLog
from trainer.training.step import Health, StepResult
from trainer.training.validation import HeldOut, Validated, Validator, read_pairs

_MAX_NAMED = 8  # examples of a step named in a message

Report = Callable[[Any], None]  # takes a `Validated` or one of the events below


@dataclass(frozen=True, kw_only=True)
class Started:
    """Training starts, or resumes after ``step`` > 0 steps; ``parameters`` of the network."""

    step: int
    total_steps: int
    parameters: int

    def __str__(self) -> str:
        begin = f"resumes after step {self.step} of {self.total_steps}"
        return f"training {begin if self.step else f'starts: {self.total_steps} steps'}, {self.parameters:,} parameters"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed since the last reading.

    Attributes:
        images_per_second: over all workers; None at the first reading, whose time includes compiling the step.
        data_wait: fraction of the time spent waiting for data, in [0, 1].
        eta_seconds: time left for training steps alone; None at the first reading.
    """

    images_per_second: float | None
    data_wait: float
    eta_seconds: float | None

    def __str__(self) -> str:
        if self.images_per_second is None or self.eta_seconds is None:
            return "compiled"
        left = duration(self.eta_seconds)
        return f"{self.images_per_second:.1f} images/s  waiting for data {self.data_wait:.0%}  {left} left"


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A logged step: its phase and loss terms, and the speed since the last one."""

    step: int
    total_steps: int
    phase: str
    terms: dict[str, float]
    speed: Speed

    def __str__(self) -> str:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in self.terms.items())
        return f"{self.phase} step {self.step}/{self.total_steps}  {terms}  {self.speed}"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint is complete in the run's folder; ``seconds`` its writing took, beside training."""

    step: int
    address: str
    best: bool
    seconds: float

    def __str__(self) -> str:
        return f"checkpoint {self.address}" + (" (best so far)" if self.best else "")


@dataclass(frozen=True, kw_only=True)
class RetentionFailed:
    why: str

    def __str__(self) -> str:
        return f"could not delete old checkpoints, will retry: {self.why}"


@dataclass(frozen=True, kw_only=True)
class PreemptionNotice:
    """A machine is about to be taken away; what was learned up to ``step`` is saved at once."""

    step: int

    def __str__(self) -> str:
        return f"preemption notice: saving checkpoint at step {self.step}"


@dataclass(frozen=True, kw_only=True)
class CheckpointUnreadable:
    """A newer checkpoint, ``skipped``, cannot be read; training resumes from the one at ``address``."""

    address: str
    skipped: str
    why: str

    def __str__(self) -> str:
        return f"cannot read checkpoint {self.skipped} ({self.why}); resuming from {self.address}"


@dataclass(frozen=True, kw_only=True)
class StepSkipped:
    """A step whose loss or gradient was not finite left the weights as they were.

    Attributes:
        worker: the one that reports it.
        skipped, allowed: steps skipped so far, and how many may be.
        examples: names of the examples to suspect; empty where this worker's were sound.
    """

    step: int
    worker: int
    skipped: int
    allowed: int
    terms: dict[str, float]
    examples: list[str]

    def __str__(self) -> str:
        counts = f"{self.skipped} of {self.allowed} allowed"
        message = f"skipped step {self.step}: non-finite {_what_failed(self.terms)} ({counts})"
        return message + (f"; examples of worker {self.worker}: {'; '.join(self.examples)}" if self.examples else "")


@dataclass(frozen=True, kw_only=True)
class LogsFailed:
    """TensorBoard's logs could not be written; later ones carry what is missing unless they were the ``last``."""

    why: str
    last: bool = False

    def __str__(self) -> str:
        return f"could not write logs{'' if self.last else ', will retry'}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Exported:
    step: int
    address: str

    def __str__(self) -> str:
        return f"export {self.address}"


@dataclass(frozen=True, kw_only=True)
class SummaryWritten:
    address: str

    def __str__(self) -> str:
        return f"summary {self.address}"


@dataclass(frozen=True, kw_only=True)
class WorkerError:
    """A worker stopped for a reason that the user can fix; ``outage``: a disk that is full, not a wrong use."""

    worker: int
    message: str
    outage: bool = False

    def __str__(self) -> str:
        return self.message


class Meter:
    """Measures training speed between readings.

    Args:
        examples_per_step: of all workers.
        total_steps: at which training ends.
        clock: returns seconds.
    """

    def __init__(self, examples_per_step: int, total_steps: int, clock: Callable[[], float] = time.monotonic):
        self._examples, self._steps, self._clock = examples_per_step, total_steps, clock
        self._begin = self._since = clock()
        self._last_step: int | None = None
        self._waited = self._excluded = 0.0

    def next(self, batches: Iterator):
        """The next of ``batches``; the time it takes counts as waiting for data."""
        begin = self._clock()
        batch = next(batches)
        self._waited += self._clock() - begin
        return batch

    def exclude(self, seconds: float) -> None:
        """Takes out of the current reading ``seconds`` that were not training but, say, validation."""
        self._excluded += seconds

    def read(self, step: int) -> Speed:
        """Speed since the last reading; ``step``: steps done."""
        now = self._clock()
        steps = step - self._last_step if self._last_step is not None else 0
        seconds = max(now - self._since - self._excluded, 1e-9)
        rate = steps * self._examples / seconds if steps else None
        left = (self._steps - step) * self._examples / rate if rate else None
        data_wait = min(1.0, self._waited / seconds)
        self._last_step, self._since, self._waited, self._excluded = step, now, 0.0, 0.0
        return Speed(images_per_second=rate, data_wait=data_wait, eta_seconds=left)

    @property
    def seconds(self) -> float:
        """Time since this was made."""
        return self._clock() - self._begin


class FiniteWatch:
    """Detects non-finite losses without blocking on the step in flight: it reads a step's health one step later.

    Args:
        worker: index of this worker.
        allowed: how many steps may be skipped.
        skipped: how many were skipped before.
        report: gets a `StepSkipped` for each skipped step.
    """

    def __init__(self, worker: int, allowed: int, skipped: int, report: Report):
        self._worker, self._allowed, self._report = worker, allowed, report
        self.skipped = skipped
        self._pending: tuple[int, StepResult, Sequence] | None = None

    def follow(self, step: int, result: StepResult, batch: Sequence) -> None:
        """Checks the step before, then remembers this one.

        Args:
            step: number of the step, from 1.
            batch: target, mask, filenames and mask indices of this worker.
        """
        self.check()
        self._pending = step, result, batch

    def check(self) -> None:
        """Checks the last step now, waiting for it.

        Raises:
            UserError: its loss or gradient is not finite, and the allowed number of steps has been skipped already.
                All workers raise it at the same step.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, result, batch = pending
        health = Health(*result.health.numpy().tolist())
        if health.sound:
            return
        terms = {name: float(value) for name, value in result.terms.items()}
        examples = [] if health.sound_here else _suspects(*batch)
        if self.skipped < self._allowed:
            self.skipped += 1
            if examples or self._worker == 0:
                counts = {"skipped": self.skipped, "allowed": self._allowed}
                self._report(StepSkipped(step=step, worker=self._worker, terms=terms, examples=examples, **counts))
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        message = f"step {step}: non-finite {_what_failed(terms)} ({values})"
        if self._allowed:
            message += f", after {self.skipped} skipped step{'s' if self.skipped > 1 else ''}"
        if examples:
            message += f"; examples of worker {self._worker}: {'; '.join(examples)}"
        raise UserError(message)


def _what_failed(terms: Mapping[str, float]) -> str:
    return "gradient" if np.isfinite(list(terms.values())).all() else "loss"


def _suspects(targets, masks, filenames, indices) -> list[str]:
    """Names of the examples that are not finite themselves; of all examples if each of them is."""
    finite = [np.isfinite(np.asarray(x)).all(axis=(1, 2, 3)) for x in (targets, masks)]
    wrong = np.flatnonzero(~(finite[0] & finite[1]))
    chosen = wrong if len(wrong) else np.arange(len(finite[0]))
    names, numbers = np.asarray(filenames), np.asarray(indices)
    listed = [f"{names[i].decode()} with mask {numbers[i]}" for i in chosen[:_MAX_NAMED]]
    return listed + ([f"and {len(chosen) - _MAX_NAMED} more"] if len(chosen) > _MAX_NAMED else [])


class Monitor:
    """One worker's view of the run: all workers validate; worker 0 reports and logs.

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
