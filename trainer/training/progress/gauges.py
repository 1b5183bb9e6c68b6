"""Numbers for Prometheus, through the endpoint that Ray has on every machine.

Ray passes a value on within ten seconds, once, and forgets it after twenty. So a thread sets all of them again
meanwhile: what happens seldom, such as a checkpoint, may have set its value an hour ago.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

REPEAT_S = 5.0  # half of Ray's interval


class Gauges:
    """The gauges of one process, whose values stay until `close`.

    Args:
        make: ``ray.util.metrics.Gauge``.
        described: by name, what a gauge tells, and a label of its own, or None.
        prefix: of the names; Ray puts ``ray_`` before it.
        labels: that all of them have, with their values.
        repeat_s: seconds after which all values are set again.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        described: Mapping[str, tuple[str, str | None]],
        prefix: str,
        labels: Mapping[str, str],
        repeat_s: float = REPEAT_S,
    ):
        self._labels, self._own = dict(labels), {name: label for name, (_, label) in described.items()}
        self._gauges = {
            name: make(prefix + name, description=text, tag_keys=(*labels, *([label] if label else [])))
            for name, (text, label) in described.items()
        }
        self._values: dict[tuple[str, str], float] = {}  # by name and its own label's value
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, args=(repeat_s,), name="gauges", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sets nothing any more: Ray forgets the values."""
        self._closed.set()
        self._thread.join()

    def set(self, name: str, value: float, own: str = "") -> None:
        """Sets a gauge; ``own``: the value of its own label."""
        with self._lock:
            self._values[name, own] = value
            self._send(name, own, value)

    def _send(self, name: str, own: str, value: float) -> None:
        labels = {str(self._own[name]): own} if own else {}
        self._gauges[name].set(value, tags=self._labels | labels)

    def _repeat(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            with self._lock:
                for (name, own), value in self._values.items():
                    self._send(name, own, value)
