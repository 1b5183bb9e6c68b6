"""Progress reporting: counts and rates on the terminal (or in the workers' logs) while a job runs."""

from __future__ import annotations

import sys
import threading
import time
import uuid

from trainer.command import duration


class _Counter:
    """Counts what one process has seen and prints a line at most every ``interval`` seconds, and at the end."""

    def __init__(self, interval: float):
        self._lock, self._interval = threading.Lock(), interval
        self._seen = self._new = 0
        self._begin = self._printed = time.monotonic()

    def add(self, label: str, total: int | None, is_new: bool, count: int = 1) -> None:
        if not count:
            return
        with self._lock:
            self._seen += count
            self._new += count * is_new
            now = time.monotonic()
            if now - self._printed < self._interval and self._seen != total:
                return
            self._printed = now
            rate = self._new / max(now - self._begin, 1e-3)
            left = max(0, total - self._seen) if total else 0
            of = f" of {total}" if total else ""
            eta = f", {duration(left / rate)} left" if rate and left else ""
            print(f"  {self._seen}{of} {label}, {rate:.1f}/s{eta}", file=sys.stderr, flush=True)


# By job, for a process may run several, one after another. DoFns are copied; their copies count together.
_counters: dict[str, _Counter] = {}


class Progress:
    """Prints how many elements this process has seen, how fast, and how much time is left.

    Args:
        label: what is counted, in the plural.
        total: how many there will be in all processes, if known at launch.
        interval: seconds between two lines.
    """

    def __init__(self, label: str, total: int | None = None, interval: float = 2.0):
        self._label, self._total, self._interval, self._key = label, total, interval, uuid.uuid4().hex

    def start(self) -> None:
        """Starts the clock of this process; for a DoFn's ``setup``."""
        _counters.setdefault(self._key, _Counter(self._interval))

    def add(self, is_new: bool = True, count: int = 1, total: int | None = None) -> None:
        """Counts elements; those that are not new (an earlier run finished them) say nothing of the rate.

        Args:
            total: as of the constructor, where it is only known by now.
        """
        _counters[self._key].add(self._label, total or self._total, is_new, count)
