"""What the inpainting job leaves in its folder when outputs are claimed, and what is counted."""

from __future__ import annotations

import itertools

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter

from pipelines.engines.on_beam.inpaint import KeepBooks
from pipelines.inpainting import outputs, pages, reports
from pipelines.inpainting.books import Line, Writer, list_parts
from pipelines.inpainting.inputs import MANIFEST, Item
from pipelines.inpainting.resume import Before
from pipelines.transforms import progress
from pipelines.transforms.rejects import Reject
from trainer import storage

JOB = {"model": "m", "precision": "float32"}

# Claiming


@pytest.fixture
def finished(tmp_path):
    """A folder as a finished job leaves it."""
    folder = str(tmp_path / "out")
    claim = outputs.claim_output(folder, JOB, overwrite=False)
    books = outputs.open_books(folder)
    writer = Writer(books, claim, 0)
    for name in ("a.png", "x/b.png"):
        item = Item(f"in/{name}", "holes", name)
        writer.add(Line("0000", outputs.write_output(item, b"pixels", {}, folder, replaces=False)))
    writer.flush()
    reports.publish(reports.Summary(), pages.Survey(), reports.Reporting(books=books, job=JOB, fields={}, claim=claim))
    return folder


def has_manifest(folder) -> bool:
    return storage.exists(storage.join(folder, MANIFEST))


def has_records(folder) -> bool:
    return bool(list_parts(folder))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_claimed_folder_has_no_manifest_until_the_job_ends(finished, overwrite):
    assert has_manifest(finished)
    outputs.claim_output(finished, JOB, overwrite)
    assert not has_manifest(finished)


def test_a_manifest_without_its_job_is_no_manifest(finished):
    storage.delete(storage.join(finished, outputs.RECORDS, outputs.JOB))
    outputs.claim_output(finished, JOB, overwrite=False)
    assert not has_manifest(finished)


def test_the_manifest_goes_before_the_records_it_counts(finished, monkeypatch):
    """Whenever an overwriting claim is killed, the folder does not look finished while something is missing."""
    store, seen = storage.store_of(finished), []

    def watched(change):
        def change_and_look(*arguments):
            change(*arguments)
            seen.append((has_manifest(finished), has_records(finished)))

        return change_and_look

    for name in ("create", "replace", "overwrite", "delete"):
        monkeypatch.setattr(store, name, watched(getattr(store, name)))
    outputs.claim_output(finished, JOB, overwrite=True)
    assert (True, False) not in seen and (False, False) in seen


# Counting


def record(number: int, status: str = "done") -> dict:
    sizes = {"output": f"{number}.png", "windows": number, "hole_ratio": number / 10, "bytes": 100 * number}
    return sizes | {"seconds": number / 4, "status": status}


LOST = Reject(source="a", stage="read", error="none")


@pytest.fixture
def books(tmp_path):
    folder = str(tmp_path / "out")
    outputs.claim_output(folder, JOB, overwrite=False)
    return outputs.open_books(folder)


def test_counters_and_distributions(books):
    outcomes = [Line("0000", outcome) for outcome in (*map(record, (1, 2, 5)), record(8, "finished before"), LOST)]
    pipeline = beam.Pipeline("FnApiRunner")
    found = pipeline | beam.Create([*outcomes, Before("", 2, b"")])
    found | beam.ParDo(KeepBooks(books, None), 7, pages.Survey())
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query(MetricsFilter().with_namespace("pconv"))
    counts = {metric.key.metric.name: metric.committed for metric in found["counters"]}
    # Six outputs, of which three are of earlier runs: what they took is not counted again.
    assert counts == {"outputs": 6, "rejects": 1, "finished_before": 3, "windows": 1 + 2 + 5}
    spreads = {metric.key.metric.name: metric.committed for metric in found["distributions"]}
    shown = {name: (value.count, value.sum, value.min, value.max) for name, value in spreads.items()}
    expected = {"hole_permille": (3, 800, 100, 500), "milliseconds": (3, 2000, 250, 1250)}
    assert shown == expected | {"output_bytes": (3, 800, 100, 500)}


def test_progress_counts_every_outcome_and_its_rate_those_of_this_run(books, monkeypatch, capsys):
    seconds = itertools.count()  # the clock moves on by one at each look
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(Writer, "add", lambda *_: None)
    outcomes = [Before("", 1, b""), *(Line("0000", outcome) for outcome in (record(2), LOST))]
    outcomes += [Line("0000", record(3, "finished before")), Line("0000", record(4))]
    step = KeepBooks(books, None)
    step.setup()
    step.start_bundle()
    for outcome in outcomes:
        step.process(outcome, 5, pages.Survey())
    assert capsys.readouterr().err.splitlines() == [
        "  2 of 5 images, 0.5/s, 0:06 left",
        "  4 of 5 images, 0.5/s, 0:02 left",
        "  5 of 5 images, 0.6/s",
    ]
