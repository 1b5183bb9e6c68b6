"""Curves of a run, read back from what the run's own log wrote."""

from __future__ import annotations

from pipelines import training_curves
from pipelines.training_curves import read_curves, thin
from trainer.tensorboard import EventLog


def log(run: str, first: int, values: dict[int, float], tag="loss/total") -> None:
    events = EventLog(run, first)
    for step, value in values.items():
        events.add_scalars(step, {tag: value, "other": 7.0})
    assert events.close() is None


def test_a_run_that_went_on_replaces_what_was_logged_beyond(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    times = iter((1000.0, 2000.0, 3000.0))
    for first, values in ((0, {10: 1.0, 20: 2.0, 30: 3.0}), (20, {30: 3.5, 40: 4.0})):
        began = next(times)
        monkeypatch.setattr("trainer.tensorboard.time.time", lambda began=began: began)
        log(run, first, values)
    assert read_curves(run, ["loss/total", "validation/psnr"]) == {
        "loss/total": [(10, 1.0), (20, 2.0), (30, 3.5), (40, 4.0)]
    }
    monkeypatch.setattr("trainer.tensorboard.time.time", lambda: 3000.0)
    log(run, 10, {15: 9.0})
    assert read_curves(run, ["loss/total"])["loss/total"] == [(10, 1.0), (15, 9.0)]
    assert read_curves(run, ["nothing"]) == {} and read_curves(str(tmp_path / "none"), ["loss/total"]) == {}


def test_long_curves_become_means_of_neighbours():
    curve = [(step, float(step)) for step in range(1, 1001)]
    short = thin(curve, 100)
    assert len(short) == 100 and short[0] == (10, 5.5) and short[-1] == (1000, 995.5)
    assert thin(curve[:7], 3) == [(3, 2.0), (6, 5.0), (7, 7.0)] and thin(curve[:5]) == curve[:5] and thin([]) == []
    assert training_curves.POINTS == 200
