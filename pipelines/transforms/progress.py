"""A rate on the terminal (or in the workers' logs) while a job runs."""

from __future__ import annotations

import sys
import threading
import time

import apache_beam as beam


class _Counter:
    """Counts what one process has seen and prints a line at most every ``interval`` seconds."""

    def __init__(self, interval: float = 2.0):
        self._lock = threading.Lock()
        self._interval, self._count = interval, 0
        self._begin = self._printed = time.monotonic()

    def add(self, label: str, total: int | None) -> None:
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if now - self._printed < self._interval and self._count != total:
                return
            self._printed = now
            rate = self._count / max(now - self._begin, 1e-9)
            of = f" of {total}" if total else ""
            print(f"  {self._count}{of} {label}, {rate:.1f}/s", file=sys.stderr, flush=True)


_counters: dict[str, _Counter] = {}


class ReportProgress(beam.DoFn):
    """Passes elements on and reports how many this process has seen, and how fast.

    Args:
        label: what is counted, in the plural.
        total: how many there will be in all, if known at launch.
    """

    def __init__(self, label: str, total: int | None = None):
        super().__init__()
        self._label, self._total = label, total
        self._seen = beam.metrics.Metrics.counter("pconv", label.replace(" ", "_"))

    def process(self, element):
        self._seen.inc()
        _counters.setdefault(self._label, _Counter()).add(self._label, self._total)
        yield element
