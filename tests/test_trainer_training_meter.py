"""Rates against a clock that is set by hand."""

from __future__ import annotations

import pytest

from trainer.training.meter import Meter


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
    assert first["images_per_second"] is None and first["eta_seconds"] is None
    for _ in range(4):
        meter.next(found)
        clock.now += 1.5
    reading = meter.read(5)  # 4 steps in 8 seconds, 2 of them waiting
    assert reading["images_per_second"] == pytest.approx(4.0)
    assert reading["data_wait"] == pytest.approx(0.25)
    assert reading["eta_seconds"] == pytest.approx(95 * 2.0)
    assert meter.seconds == pytest.approx(28.5)


def test_validation_is_no_training_time():
    clock = Clock()
    meter = Meter(8, 100, clock)
    meter.read(0)
    clock.now += 8
    meter.read(4)
    clock.now += 8 + 30
    meter.leave_out(30)
    assert meter.read(8)["images_per_second"] == pytest.approx(4.0)
    clock.now += 8
    assert meter.read(12)["images_per_second"] == pytest.approx(4.0)  # left out once
