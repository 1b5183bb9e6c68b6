"""What the inpainting job says while it runs: counters, distributions, and lines with a rate and the time left."""

from __future__ import annotations

import re

import apache_beam as beam
from apache_beam.metrics import MetricsFilter

from pipelines.inpainting import outputs
from pipelines.transforms.rejects import Reject


def record(number: int, status: str = "done") -> dict:
    sizes = {"windows": number, "hole_ratio": number / 10, "bytes": 100 * number}
    return sizes | {"seconds": number / 4, "status": status}


def test_counters_and_distributions():
    outcomes = [*map(record, (1, 2, 5)), record(8, "finished before"), Reject(source="a", stage="read", error="none")]
    pipeline = beam.Pipeline("FnApiRunner")
    pipeline | beam.Create(outcomes) | beam.ParDo(outputs.ReportItems(len(outcomes)))
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace("pconv"))
    counts = {metric.key.metric.name: metric.committed for metric in found["counters"]}
    # Four outputs, of which one is of an earlier run: what it took is not counted again.
    assert counts == {"outputs": 4, "rejects": 1, "finished_before": 1, "windows": 1 + 2 + 5}
    spreads = {metric.key.metric.name: metric.committed for metric in found["distributions"]}
    shown = {name: (value.count, value.sum, value.min, value.max) for name, value in spreads.items()}
    expected = {"hole_permille": (3, 800, 100, 500), "milliseconds": (3, 2000, 250, 1250)}
    assert shown == expected | {"output_bytes": (3, 800, 100, 500)}


def test_progress_has_a_rate_and_the_time_left(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(outputs.time, "monotonic", lambda: next(clock))
    progress = outputs._Progress(interval=2.0)
    for is_new in (False, True, True, True, True):
        progress.add(5, is_new)
    # A line after 2 and 4 seconds, and at the end; what was there before says nothing of the rate.
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].strip() for line in lines] == ["2 of 5 images", "4 of 5 images", "5 of 5 images"]
    assert [re.search(r"([\d.]+)/s", line)[1] for line in lines] == ["0.5", "0.8", "0.8"]
    assert [line.partition("/s")[2] for line in lines] == [", 0:06 left", ", 0:01 left", ""]
