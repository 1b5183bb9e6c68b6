"""How fast a worker trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from trainer.training.progress.events import Speed


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
