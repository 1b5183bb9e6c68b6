"""`Progress` of a Beam pipeline's elements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipelines.transforms.progress import Progress


class ReportProgress(beam.DoFn):
    """Passes elements on, counts them, and prints `Progress`.

    Args:
        label, total: as of `Progress`; the counter is called after ``label``.
    """

    def __init__(self, label: str, total: int | None = None):
        super().__init__()
        self._progress = Progress(label, total)
        self._seen = beam.metrics.Metrics.counter("pconv", label.replace(" ", "_"))

    def setup(self):
        self._progress.start()

    def process(self, element: Any) -> Iterator[Any]:
        self._seen.inc()
        self._progress.add()
        yield element
