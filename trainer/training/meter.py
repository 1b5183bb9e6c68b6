"""How fast training goes: images per second, the share of time spent waiting for data, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Meter:
    """Measures between readings; the first one contains tracing and gives no rate.

    Args:
        examples_per_step: over all workers.
        steps: at which training ends.
        clock: seconds.
    """

    def __init__(self, examples_per_step: int, steps: int, clock: Callable[[], float] = time.monotonic):
        self._examples, self._steps, self._clock = examples_per_step, steps, clock
        self._begin = self._since = clock()
        self._at: int | None = None
        self._waited = self._elsewhere = 0.0

    def next(self, batches: Iterator):
        """The next of ``batches``; its time is that of waiting for data."""
        begin = self._clock()
        batch = next(batches)
        self._waited += self._clock() - begin
        return batch

    def leave_out(self, seconds: float) -> None:
        """Of the time since the last reading, ``seconds`` were not training but, say, validation."""
        self._elsewhere += seconds

    def read(self, step: int) -> dict:
        """``images_per_second``, ``data_wait`` (a share) and ``eta_seconds`` since the last reading.

        Rate and time left are None at the first reading. The time left is that of training steps alone.
        """
        now = self._clock()
        steps = step - self._at if self._at is not None else 0
        seconds = max(now - self._since - self._elsewhere, 1e-9)
        rate = steps * self._examples / seconds if steps else None
        left = (self._steps - step) * self._examples / rate if rate else None
        reading = {"images_per_second": rate, "data_wait": min(1.0, self._waited / seconds), "eta_seconds": left}
        self._at, self._since, self._waited, self._elsewhere = step, now, 0.0, 0.0
        return reading

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return self._clock() - self._begin
