"""How fast a worker trains, and which one the others wait for."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from trainer.training.progress.events import Speed, Straggler
from trainer.training.step import StepResult

_SLOW, _MATTERS = 1.5, 0.05  # times what the others need, and seconds more, from which on a worker is named


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
        each = seconds / steps if steps else None
        self._last_step, self._since, self._waited, self._excluded = step, now, 0.0, 0.0
        return Speed(images_per_second=rate, data_wait=data_wait, eta_seconds=left, step_seconds=each)

    @property
    def seconds(self) -> float:
        """Time since this was made."""
        return self._clock() - self._begin


class OwnTime:
    """Measures how long a worker goes without the others, between readings; all other time of a step they share.

    It reads the times of a step once the next one is begun, when they are known.
    """

    def __init__(self) -> None:
        self._pending: tuple[StepResult, bool] | None = None
        self._paused = True  # before the first step, which is compiled
        self._met: float | None = None  # when this worker had the others' gradients last
        self._seconds, self._steps = 0.0, 0

    def follow(self, result: StepResult) -> None:
        """A step has been begun; the one before is done."""
        if self._pending and (times := self._pending[0].times) is not None:
            needed, met = times.numpy().tolist()
            if self._met is not None and not self._pending[1]:
                self._seconds, self._steps = self._seconds + needed - self._met, self._steps + 1
            self._met = met
        self._pending, self._paused = (result, self._paused), False

    def pause(self) -> None:
        """The time until the next step is no training."""
        self._paused = True

    def read(self) -> float | None:
        """Seconds of a step since the last reading, on average; None if there were none."""
        found = self._seconds / self._steps if self._steps else None
        self._seconds, self._steps = 0.0, 0
        return found


def find_straggler(own_seconds: Sequence[float]) -> Straggler | None:
    """The worker of whom all others have to wait much longer than for each other, if there is one.

    Args:
        own_seconds: of each worker, from `OwnTime`; NaN where it is not known.
    """
    if len(own_seconds) < 2 or any(map(math.isnan, own_seconds)):
        return None
    slowest = max(own_seconds)
    worker = own_seconds.index(slowest)
    others = statistics.median(value for number, value in enumerate(own_seconds) if number != worker)
    if slowest < _SLOW * others or slowest < others + _MATTERS:
        return None
    return Straggler(worker=worker, seconds=slowest, others=others)
