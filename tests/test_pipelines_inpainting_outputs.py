"""What the inpainting job leaves in its folder when outputs are claimed, which items are done, and what is counted."""

from __future__ import annotations

import itertools

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter

from pipelines.inpainting import outputs
from pipelines.inpainting.inputs import MANIFEST, Item
from pipelines.transforms import progress
from pipelines.transforms.rejects import REJECTED, Reject
from trainer import storage

JOB = {"model": "m", "precision": "float32"}

# Claiming


@pytest.fixture
def finished(tmp_path):
    """A folder as a finished job leaves it."""
    folder = str(tmp_path / "out")
    outputs.claim_output(folder, JOB, overwrite=False)
    for name in ("a.png", "x/b.png"):
        outputs.write_output(Item(f"in/{name}", "holes", name), b"pixels", {}, folder, replaces=False)
    outputs.write_outcome(2, folder, {}, [], [])
    return folder


def has_manifest(folder) -> bool:
    return storage.exists(storage.join(folder, MANIFEST))


def has_records(folder) -> bool:
    return all(storage.exists(outputs.record_address(folder, name)) for name in ("a.png", "x/b.png"))


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


# Skipping


def skip(items: list[Item], *existing: str) -> list:
    """(tag, value) of what `skip_finished` makes of one output."""
    found = outputs.skip_finished(("x/a.png", {"items": items, "existing": existing}))
    return [(x.tag, x.value) if isinstance(x, beam.pvalue.TaggedOutput) else (None, x) for x in found]


ITEMS = [Item(f"in/x/a.{kind}", f"holes/a.{kind}", "x/a.png") for kind in ("gif", "jpg", "png")]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("existing", [(), ("record", "output")])
def test_inputs_of_one_output_are_all_rejected(count, existing):
    found = skip(ITEMS[:count][::-1], *existing)
    assert [tag for tag, _ in found] == [REJECTED] * count
    assert [lost.source for _, lost in found] == [item.image for item in ITEMS[:count]]
    message = f"MatchError: expected one image for each output. Received {count} for x/a.png."
    assert {(lost.stage, lost.error) for _, lost in found} == {("match", message)}


@pytest.mark.parametrize(
    ("existing", "tag"),
    [((), None), (("output",), None), (("record",), None), (("record", "output"), outputs.FINISHED)],
)
def test_an_output_is_finished_when_it_and_its_record_are_there(existing, tag):
    assert skip(ITEMS[:1], *existing) == [(tag, ITEMS[0])]


def test_outputs_of_no_input_are_left_alone():
    assert skip([], "record", "output") == []


# Counting


def record(number: int, status: str = "done") -> dict:
    sizes = {"windows": number, "hole_ratio": number / 10, "bytes": 100 * number}
    return sizes | {"seconds": number / 4, "status": status}


LOST = Reject(source="a", stage="read", error="none")


def test_counters_and_distributions():
    outcomes = [*map(record, (1, 2, 5)), record(8, "finished before"), LOST]
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


def test_progress_counts_every_outcome_and_its_rate_those_of_this_run(monkeypatch, capsys):
    seconds = itertools.count()  # the clock moves on by one at each look
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
    outcomes = [record(1, "finished before"), record(2), LOST, record(3, "finished before"), record(4)]
    step = outputs.ReportItems(5)
    step.setup()
    assert [passed for outcome in outcomes for passed in step.process(outcome)] == outcomes
    assert capsys.readouterr().err.splitlines() == [
        "  2 of 5 images, 0.5/s, 0:06 left",
        "  4 of 5 images, 0.5/s, 0:02 left",
        "  5 of 5 images, 0.6/s",
    ]
