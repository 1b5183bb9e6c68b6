"""The lines that people read of events, and rates against a clock that is set by hand."""

from __future__ import annotations

import pickle

import pytest

from trainer.metrics.intervals import ALL
from trainer.training.progress.events import (
    CheckpointAwaited,
    CheckpointSaved,
    CheckpointUnreadable,
    Exported,
    LogsFailed,
    PreemptionNotice,
    Speed,
    Started,
    StepDone,
    StepSkipped,
    SummaryWritten,
    WorkerError,
)
from trainer.training.progress.meter import Meter
from trainer.training.validation import Validated

SKIPPED = StepSkipped(
    step=3, worker=1, skipped=1, allowed=2, terms={"total": float("nan")}, examples=["a.jpg with mask 4"]
)


def test_a_progress_line_has_all_there_is_to_know():
    assert str(Started(step=0, total_steps=600, parameters=1234567)) == (
        "training starts: 600 steps, 1,234,567 parameters"
    )
    assert str(Started(step=5, total_steps=600, parameters=7)) == "training resumes after step 5 of 600, 7 parameters"
    step = {"step": 20, "total_steps": 600, "phase": "initial", "terms": {"total": 1.23456, "hole": 0.5}}
    speed = Speed(images_per_second=85.44, data_wait=0.031, eta_seconds=3725.2)
    assert str(StepDone(**step, speed=speed)) == (
        "initial step 20/600  total 1.2346  hole 0.5000  85.4 images/s  waiting for data 3%  1:02:05 left"
    )
    first = Speed(images_per_second=None, data_wait=0.9, eta_seconds=None)
    assert str(StepDone(**step, speed=first)).endswith("hole 0.5000  compiled")


def test_validation_is_one_line():
    cell = {"count": 4, "failed": 0, "psnr": 20.0, "psnr_error": 0.25, "ssim": 0.8, "l1": 0.021}
    assert str(Validated(step=9, cells={ALL: cell, 3: cell | {"psnr": 18.5}})) == (
        "validation step 9  PSNR 20.00 +- 0.25 dB  SSIM 0.800  l1 2.10 %  of 4 pairs  "
        "(PSNR by hole ratio  0.3-0.4: 18.50)"
    )
    line = str(Validated(step=9, cells={ALL: cell | {"failed": 1}}))
    assert "of 4 pairs (1 failed: not finite)  (PSNR" in line


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (SKIPPED, "skipped step 3: non-finite loss (1 of 2 allowed); examples of worker 1: a.jpg with mask 4"),
        (
            StepSkipped(step=3, worker=0, skipped=1, allowed=2, terms={"total": 0.5}, examples=[]),
            "skipped step 3: non-finite gradient (1 of 2 allowed)",
        ),
        (
            CheckpointUnreadable(address="gs://b/1", skipped="gs://b/2", why="gs://b/2/x is corrupt"),
            "cannot read checkpoint gs://b/2 (gs://b/2/x is corrupt); resuming from gs://b/1",
        ),
        (LogsFailed(why="not now"), "could not write logs, will retry: not now"),
        (LogsFailed(why="not now", last=True), "could not write logs: not now"),
        (CheckpointSaved(step=7, address="gs://b/1", best=True, seconds=1.0), "checkpoint gs://b/1 (best so far)"),
        (CheckpointSaved(step=7, address="gs://b/1", best=False, seconds=1.0), "checkpoint gs://b/1"),
        (
            CheckpointAwaited(seconds=61.25, minutes=0.5),
            "training waited 61.2 s for a checkpoint to be written: with checkpoint.every_minutes=0.5 no more may be "
            "lost",
        ),
        (PreemptionNotice(step=7), "preemption notice: saving checkpoint at step 7"),
        (Exported(step=7, address="gs://b/e"), "export gs://b/e"),
        (SummaryWritten(address="gs://b/s"), "summary gs://b/s"),
        (WorkerError(worker=1, message="it is broken"), "it is broken"),
    ],
)
def test_what_happened_is_told_on_the_other_side_of_a_queue(event, line):
    assert str(pickle.loads(pickle.dumps(event))) == str(event) == line


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def batches(clock, seconds):
    while True:
        clock.now += seconds
        yield "batch"


def test_rate_waiting_and_time_left():
    clock = Clock()
    meter = Meter(8, 100, clock)
    found = iter(batches(clock, 0.5))
    assert meter.next(found) == "batch"
    clock.now += 20  # tracing
    first = meter.read(1)
    assert first.images_per_second is None and first.eta_seconds is None
    for _ in range(4):
        meter.next(found)
        clock.now += 1.5
    reading = meter.read(5)  # 4 steps in 8 seconds, 2 of them waiting
    assert reading.images_per_second == pytest.approx(4.0)
    assert reading.data_wait == pytest.approx(0.25)
    assert reading.eta_seconds == pytest.approx(95 * 2.0)
    assert meter.seconds == pytest.approx(28.5)


def test_validation_is_no_training_time():
    clock = Clock()
    meter = Meter(8, 100, clock)
    meter.read(0)
    clock.now += 8
    meter.read(4)
    clock.now += 8 + 30
    meter.exclude(30)
    assert meter.read(8).images_per_second == pytest.approx(4.0)
    clock.now += 8
    assert meter.read(12).images_per_second == pytest.approx(4.0)  # excluded once
