"""How far a job is: a line on the terminal, and numbers for Prometheus, see `trainer.training.progress.gauges`.

Ray's names for the numbers begin with ``ray_``: ``ray_pconv_job_done``. They have the label ``output``, the address of
the job's folder, and come from the machine on which the command runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipelines.transforms.progress import Progress
from trainer.training.progress.gauges import Gauges

PREFIX = "pconv_job_"
METRICS = {
    "done": "Images, or scores of an evaluation, that are done; those of earlier runs, too.",
    "total": "How many there will be; 0 if nobody knows.",
    "rejects": "Inputs that could not be used.",
    "lost": "Images that were lost with a process or a machine, and are made again alone.",
    "per_second": "What this run has done, over its time.",
}


class JobProgress:
    """Says how far a job is, until `close`.

    Args:
        label: what is counted, in the plural.
        output: address of the job's folder.
        make: ``ray.util.metrics.Gauge``.
        total: how many there will be, if known.
    """

    def __init__(self, label: str, output: str, make: Callable[..., Any], total: int = 0):
        self._shown = Progress(label, total)
        self._begin, self._new = time.monotonic(), 0
        self._values = dict.fromkeys(METRICS, 0.0) | {"total": total}
        self._gauges = Gauges(make, {name: (text, None) for name, text in METRICS.items()}, PREFIX, {"output": output})
        self._shown.start()

    def close(self) -> None:
        """Tells Prometheus nothing any more."""
        self._gauges.close()

    def add(self, new: int = 0, old: int = 0, rejects: int = 0, lost: int = 0) -> None:
        """Counts what this run has done and what was known at its start, how many of both were rejects, and losses."""
        self._shown.add(True, new)
        self._shown.add(False, old)
        self._new += new
        for name, count in {"done": new + old, "rejects": rejects, "lost": lost}.items():
            self._values[name] += count
        self._values["per_second"] = self._new / max(time.monotonic() - self._begin, 1e-3)
        for name, value in self._values.items():
            self._gauges.set(name, value)
