"""What workers report of a training, as events; ``str(event)`` is the line that people read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.command import duration

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
class WorkersMissing:
    """Fewer workers train than were asked for; ``cost`` is a sentence about it."""

    cost: str

    def __str__(self) -> str:
        return self.cost


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Training speed since the last reading.

    Attributes:
        images_per_second: over all workers; None at the first reading, whose time includes compiling the step.
        data_wait: fraction of the time spent waiting for data, in [0, 1].
        eta_seconds: time left for training steps alone; None at the first reading.
        step_seconds: of one step, on average; None at the first reading.
    """

    images_per_second: float | None
    data_wait: float
    eta_seconds: float | None
    step_seconds: float | None = None

    def __str__(self) -> str:
        if self.images_per_second is None or self.eta_seconds is None:
            return "compiled"
        left = duration(self.eta_seconds)
        return f"{self.images_per_second:.1f} images/s  waiting for data {self.data_wait:.0%}  {left} left"


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """A worker that the others wait for: ``seconds`` of a step before it meets them, which the ``others`` have not."""

    worker: int
    seconds: float
    others: float

    def __str__(self) -> str:
        return f"worker {self.worker} is slow: {self.seconds:.2g} s a step on its own, the others {self.others:.2g} s"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one worker is, since its last reading. Every worker has some, and no line is printed of it.

    Attributes:
        speed: as this worker measured it.
        own_seconds: of a step, on average, from one exchange of gradients until this worker next needs the others: it
            waits for its data then, and computes. None if it is the only one, and at the first reading.
    """

    worker: int
    speed: Speed
    own_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A logged step: its phase and loss terms, the speed since the last one, and whom all workers waited for."""

    step: int
    total_steps: int
    phase: str
    terms: dict[str, float]
    speed: Speed
    straggler: Straggler | None = None

    def __str__(self) -> str:
        terms = "  ".join(f"{name} {value:.4f}" for name, value in self.terms.items())
        slow = f"  {self.straggler}" if self.straggler else ""
        return f"{self.phase} step {self.step}/{self.total_steps}  {terms}  {self.speed}{slow}"


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
class CheckpointAwaited:
    """Training stood still for ``seconds``: the checkpoint took longer than ``checkpoint.every_minutes`` leaves it."""

    seconds: float
    minutes: float

    def __str__(self) -> str:
        return (
            f"training waited {self.seconds:.1f} s for a checkpoint to be written: with checkpoint.every_minutes="
            f"{self.minutes:g} no more may be lost"
        )


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
        message = f"skipped step {self.step}: non-finite {what_failed(self.terms)} ({counts})"
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
class WorkerFailed:
    """A worker, or its machine, is gone: all workers start again, if they may; ``why`` is one line."""

    worker: int
    why: str

    def __str__(self) -> str:
        return f"worker {self.worker} has failed: {self.why}"


@dataclass(frozen=True, kw_only=True)
class WorkerError:
    """A worker stopped for a reason that the user can fix; ``outage``: a disk that is full, not a wrong use."""

    worker: int
    message: str
    outage: bool = False

    def __str__(self) -> str:
        return self.message


def what_failed(terms: Mapping[str, float]) -> str:
    return "gradient" if np.isfinite(list(terms.values())).all() else "loss"
