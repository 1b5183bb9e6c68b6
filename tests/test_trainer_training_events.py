"""Lines that people read, from events as workers report them."""

from __future__ import annotations

from trainer.metrics.intervals import ALL
from trainer.training.events import Describer


def describe(*events):
    describer = Describer()
    return [describer(event) for event in events]


def test_a_progress_line_has_all_there_is_to_know():
    started = {"event": "started", "step": 0, "steps": 600, "parameters": 1234567}
    step = {"event": "step", "step": 20, "phase": "initial", "terms": {"total": 1.23456, "hole": 0.5}}
    reading = {"images_per_second": 85.44, "data_wait": 0.031, "eta_seconds": 3725.2}
    lines = describe(started, step | reading, {**started, "step": 5}, step | reading | {"images_per_second": None})
    assert lines[0] == "training starts of 600 steps, 1,234,567 parameters"
    assert lines[1] == (
        "initial step 20/600  total 1.2346  hole 0.5000  85.4 images/s  waiting for data 3%  1:02:05 left"
    )
    assert lines[2].startswith("training continues after step 5 of 600 steps")
    assert lines[3].endswith("hole 0.5000  compiled")


def test_validation_is_one_line():
    cell = {"count": 4, "failed": 0, "psnr": 20.0, "psnr_error": 0.25, "ssim": 0.8, "l1": 0.021}
    (line,) = describe({"event": "validation", "step": 9, "cells": {ALL: cell, 3: cell | {"psnr": 18.5}}})
    assert line == (
        "validation step 9  PSNR 20.00 +- 0.25 dB  SSIM 0.800  l1 2.10 %  of 4 pairs  "
        "(PSNR by hole ratio  0.3-0.4: 18.50)"
    )
    (line,) = describe({"event": "validation", "step": 9, "cells": {ALL: cell | {"failed": 1}}})
    assert "of 4 pairs (1 failed: not finite)  (PSNR" in line


def test_what_went_wrong_is_told():
    skipped = {
        "event": "skipped",
        "step": 3,
        "worker": 1,
        "skipped": 1,
        "allowed": 2,
        "examples": ["a.jpg with mask 4"],
    }
    lines = describe(
        skipped,
        skipped | {"examples": []},
        {"event": "fallback", "skipped": "gs://b/2", "why": "gs://b/2/x is corrupt", "address": "gs://b/1"},
        {"event": "logs", "step": 3, "why": "not now"},
        {"event": "checkpoint", "address": "gs://b/1", "best": True},
        {"event": "export", "address": "gs://b/e"},
        {"event": "notice", "step": 7},
    )
    assert lines == [
        "step 3 left out, its loss is not finite (1 of 2 allowed); examples of worker 1: a.jpg with mask 4",
        "step 3 left out, its loss is not finite (1 of 2 allowed)",
        "checkpoint gs://b/2 cannot be read (gs://b/2/x is corrupt): continuing from gs://b/1",
        "logs could not be written, they will be with the next ones: not now",
        "checkpoint gs://b/1 (best so far)",
        "export gs://b/e",
        "a machine will be taken away: saving step 7 now",
    ]
