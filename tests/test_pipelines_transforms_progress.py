"""Progress lines: count, rate and time left, of what this process has seen of one job."""

from __future__ import annotations

import itertools
import pickle
import re

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to

from pipelines.transforms import progress
from pipelines.transforms.progress import Progress
from pipelines.transforms.report_progress import ReportProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on by a second at each look."""
    seconds = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


def test_a_line_has_the_rate_and_the_time_left(clock, capsys):
    shown = Progress("images", total=5)
    shown.start()
    for is_new in (False, True, True, True, True):
        shown.add(is_new)
    # A line after 2 and 4 seconds, and at the end; what was there before says nothing of the rate.
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].strip() for line in lines] == ["2 of 5 images", "4 of 5 images", "5 of 5 images"]
    assert [re.search(r"([\d.]+)/s", line)[1] for line in lines] == ["0.5", "0.8", "0.8"]
    assert [line.partition("/s")[2] for line in lines] == [", 0:06 left", ", 0:01 left", ""]


def test_without_a_total_no_time_is_left(clock, capsys):
    shown = Progress("masks", interval=3)
    shown.start()
    for _ in range(6):
        shown.add()
    assert capsys.readouterr().err.splitlines() == ["  3 masks, 1.0/s", "  6 masks, 1.0/s"]


def test_copies_count_together_and_jobs_apart(clock, capsys):
    first, second = Progress("masks", total=2), Progress("masks", total=2)
    for shown in (first, pickle.loads(pickle.dumps(first)), second):
        shown.start()
        shown.add()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["  2 of 2 masks"]


def test_elements_pass_and_are_counted(capsys):
    pipeline = beam.Pipeline("FnApiRunner")
    found = pipeline | beam.Create([3, 1, 2]) | beam.ParDo(ReportProgress("small masks", 3))
    assert_that(found, equal_to([1, 2, 3]))
    done = pipeline.run()
    done.wait_until_finish()
    (counter,) = done.metrics().query(MetricsFilter().with_namespace("pconv"))["counters"]
    assert (counter.key.metric.name, counter.committed) == ("small_masks", 3)
    assert "  3 of 3 small masks, " in capsys.readouterr().err
