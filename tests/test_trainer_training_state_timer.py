"""Checkpoints by time: what a machine that is lost would cost, at every moment of trainings on a clock set by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.training.state.timer import SaveTimer


class Training:
    """A training whose steps and writing take as long as is said; nothing else takes any time.

    Attributes:
        trained: seconds so far; what it stood still for does not count.
        lost: the most that its end would have cost, at any moment.
        saved: seconds of training at which each checkpoint was begun.
        waited: seconds that it stood still.
    """

    def __init__(self, minutes):
        self.now = 1000.0
        self.timer = SaveTimer(minutes, lambda: self.now)
        self.trained = self.lost = self.waited = self.kept = 0.0
        self.saved, self.writing = [], None

    def settle(self, until):
        """Completes what is written by ``until``."""
        if self.writing and self.writing[0] <= until:
            end, number, seconds, trained = self.writing
            self.writing, self.kept = None, trained
            self.timer.complete(number, seconds)

    def step(self, seconds, writing):
        self.now += seconds
        self.trained += seconds
        if self.writing and self.writing[0] <= self.now:  # the moment before it was complete
            self.lost = max(self.lost, self.trained - (self.now - self.writing[0]) - self.kept)
        self.settle(self.now)
        self.lost = max(self.lost, self.trained - self.kept)
        self.timer.check()
        if self.writing and self.timer.must_wait():
            waited = self.writing[0] - self.now
            self.now, self.waited = self.writing[0], self.waited + waited
            self.timer.pause(waited)
            self.settle(self.now)
        if not self.writing and self.timer.is_due():
            self.saved.append(self.trained)
            self.timer.begin(len(self.saved))
            self.writing = self.now + writing, len(self.saved), writing, self.trained


def test_a_checkpoint_is_begun_so_early_that_it_is_complete_in_time():
    training = Training(minutes=10)
    for _ in range(300):
        training.step(10, writing=60)
    # The first for half of the time; then 600 - 60 for the writing - 10 for the step that comes.
    assert training.saved == [290 + n * 530 for n in range(6)]
    assert training.waited == 0 and training.lost == 590


def test_training_waits_for_a_storage_that_is_too_slow():
    training = Training(minutes=1)
    for _ in range(100):
        training.step(10, writing=90)
    # Each is begun when the one before is complete, for which training waits 50 s and 70 s in turn.
    assert training.saved[:6] == [20, 60, 80, 120, 140, 180] and len(training.saved) == 33
    assert training.lost == 60 and training.waited == 32 * 60


@pytest.mark.parametrize("seed", range(20))
def test_no_more_is_lost_whatever_writing_takes(seed):
    rng = np.random.default_rng(seed)
    minutes, step = rng.uniform(1, 30), rng.uniform(0.1, 50)
    training = Training(minutes)
    for _ in range(2000):
        training.step(step, writing=rng.gamma(2, 60))  # also longer than any before
    assert len(training.saved) > 3 and training.lost <= 60 * minutes + 1e-6


def test_what_was_no_training_does_not_count():
    training = Training(minutes=10)
    for _ in range(20):
        training.now += 3600  # validation
        training.timer.pause(3600)
        training.step(10, writing=1)
    assert training.saved == []
