"""The lines that people read of events, and rates against a clock that is set by hand."""

from __future__ import annotations

import pickle
import time

import pytest
import tensorflow as tf

from trainer.metrics import validation_metrics
from trainer.metrics.intervals import ALL
from trainer.training.progress.events import (
    CheckpointAwaited,
    CheckpointSaved,
    CheckpointUnreadable,
    Exported,
    LogsFailed,
    Pace,
    PreemptionNotice,
    Speed,
    Started,
    StepDone,
    StepSkipped,
    Straggler,
    SummaryWritten,
    WorkerError,
    WorkersMissing,
)
from trainer.training.progress.meter import Meter, OwnTime, find_straggler
from trainer.training.progress.metrics import METRICS, Metrics
from trainer.training.step import StepResult
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
    slow = Straggler(worker=3, seconds=1.53, others=0.75)
    assert str(StepDone(**step, speed=speed, straggler=slow)).endswith(
        "1:02:05 left  worker 3 is slow: 1.5 s a step on its own, the others 0.75 s"
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
        (WorkersMissing(cost="1 worker instead of 2: it costs"), "1 worker instead of 2: it costs"),
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
    assert reading.step_seconds == pytest.approx(2.0) and first.step_seconds is None
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


def steps(*times):
    """What steps return that needed the others and had their gradients at such seconds."""
    return [StepResult({}, None, None, tf.constant(each, tf.float64)) for each in times]


def test_a_workers_own_time_is_that_between_two_exchanges():
    own = OwnTime()
    first, second, third, fourth, fifth = steps((10, 50), (53, 60), (64, 70), (170, 180), (181, 190))
    for result in (first, second):
        own.follow(result)
        assert own.read() is None  # of the second nothing is known before the third is begun
    own.follow(third)
    assert own.read() == 3
    own.pause()  # for validation, which takes 100 s
    own.follow(fourth)
    assert own.read() == 4
    own.follow(fifth)
    assert own.read() is None
    own.follow(fifth)
    assert own.read() == 1
    alone = OwnTime()
    for _ in range(3):
        alone.follow(StepResult({}, None, None))
    assert alone.read() is None


@pytest.mark.parametrize(
    ("seconds", "straggler"),
    [
        ([0.5, 0.5, 0.9, 0.6], Straggler(worker=2, seconds=0.9, others=0.5)),
        ([0.2, 0.6], Straggler(worker=1, seconds=0.6, others=0.2)),
        ([0.5, 0.5, 0.7, 0.6], None),
        ([0.01, 0.05], None),  # nobody minds
        ([0.5, float("nan")], None),
        ([0.5], None),
    ],
)
def test_the_worker_that_others_wait_for_is_named(seconds, straggler):
    assert find_straggler(seconds) == straggler


class Gauge:
    """Keeps what it is set to, by name and labels, and counts."""

    values: dict = {}
    count = 0

    def __init__(self, name, description, tag_keys):
        assert description
        self.name, self.keys = name, set(tag_keys)

    def set(self, value, tags):
        assert set(tags) == self.keys
        Gauge.values[(self.name, *(tags[key] for key in sorted(tags) if key != "run"))] = value
        Gauge.count += 1


def test_metrics_are_set_by_events_and_by_nothing_else():
    clock = Clock()
    metrics = Metrics("gs://b/run", 1, Gauge, clock, repeat_s=1e9)
    metrics.record(Started(step=5, total_steps=9, parameters=7))
    assert Gauge.values["pconv_train_saved_time_seconds", "1"] == 100
    speed = Speed(images_per_second=80.0, data_wait=0.25, eta_seconds=3.0, step_seconds=0.1)
    metrics.record(Pace(worker=1, speed=speed, own_seconds=0.05))
    metrics.record(StepDone(step=6, total_steps=9, phase="initial", terms={"total": 2.0, "hole": 0.5}, speed=speed))
    clock.now = 400.0
    metrics.record(CheckpointSaved(step=6, address="gs://b/1", best=True, seconds=30.0))
    scores = dict.fromkeys(validation_metrics(), 0.5) | {"psnr": 20.0, "l1": float("nan")}
    metrics.record(Validated(step=6, cells={ALL: scores}))
    metrics.record(SKIPPED)
    named = {name.removeprefix("pconv_train_"): value for (name, *_), value in Gauge.values.items()}
    assert named.keys() == METRICS.keys()
    assert Gauge.values["pconv_train_loss", "hole", "1"] == 0.5
    assert Gauge.values["pconv_train_validation", "psnr", "1"] == 20.0
    assert ("pconv_train_validation", "l1", "1") not in Gauge.values
    assert (named["step"], named["own_seconds"], named["step_seconds"], named["data_wait_ratio"]) == (
        6,
        0.05,
        0.1,
        0.25,
    )
    assert (named["checkpoint_seconds"], named["checkpoint_step"], named["saved_time_seconds"]) == (30, 6, 370)
    before = Gauge.count
    metrics.record(PreemptionNotice(step=7))
    first = Speed(images_per_second=None, data_wait=0.9, eta_seconds=None)
    metrics.record(Pace(worker=1, speed=first, own_seconds=None))
    assert Gauge.count == before + 1  # the waiting


def test_metrics_are_set_again_until_they_are_closed():
    """Ray forgets what nobody sets any more."""
    metrics = Metrics("gs://b/run", 1, Gauge, Clock(), repeat_s=0.001)
    metrics.record(CheckpointSaved(step=6, address="gs://b/1", best=True, seconds=30.0))
    Gauge.values.clear()
    deadline = time.monotonic() + 600
    while len(Gauge.values) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    expected = {"checkpoint_step": 6, "checkpoint_seconds": 30, "saved_time_seconds": 70}
    assert Gauge.values == {(f"pconv_train_{name}", "1"): value for name, value in expected.items()}
    metrics.close()
    before = Gauge.count
    time.sleep(0.01)  # ten times as long as one that was open would wait
    assert Gauge.count == before
