"""When a checkpoint is due by time."""

from __future__ import annotations

import time
from collections.abc import Callable


class SaveTimer:
    """Bounds the training time between the newest complete checkpoint and now, which is what a lost machine costs.

    A checkpoint is no use before it is complete. So one is begun as early as the longest writing so far asks for, and a
    step before; as long as none has been written, half of the time is reserved for it. Where writing takes longer than
    that, training has to wait for it.

    Args:
        minutes: the bound; positive.
        clock: returns seconds.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self._limit, self._clock = 60 * minutes, clock
        self._paused = 0.0
        self._checked = self._kept = clock()
        self._step = 0.0  # seconds of the last one
        self._begun: dict[int, float] = {}  # by step, of checkpoints that are being written
        self._writing: float | None = None

    def _now(self) -> float:
        """Seconds of training."""
        return self._clock() - self._paused

    def pause(self, seconds: float) -> None:
        """Takes out ``seconds`` in which nothing was trained."""
        self._paused += seconds

    def begin(self, step: int) -> None:
        """What was learned up to ``step`` is being written from now on."""
        self._begun[step] = self._now()

    def complete(self, step: int, seconds: float) -> None:
        """The checkpoint of ``step`` is complete; ``seconds`` its writing took."""
        self._kept = max(self._kept, self._begun.pop(step, self._kept))
        self._writing = max(seconds, self._writing or 0.0)

    def check(self) -> None:
        """To be called after each step, before the two below."""
        now = self._now()
        self._step, self._checked = now - self._checked, now

    def is_due(self) -> bool:
        """Whether to begin a checkpoint now."""
        writing = self._limit / 2 if self._writing is None else self._writing
        return self._checked - self._kept + self._step + writing >= self._limit

    def must_wait(self) -> bool:
        """Whether another step could be more than may be lost, as long as none of those begun is complete."""
        return self._checked - self._kept + self._step > self._limit
