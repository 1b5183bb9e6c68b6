"""Counters and distributions of the inpainting job."""

from __future__ import annotations

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
