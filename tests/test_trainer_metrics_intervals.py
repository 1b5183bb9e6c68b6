"""Means and standard errors against the statistics module, and sums that do not depend on their order."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from trainer.metrics import intervals, validation_metrics
from trainer.metrics.intervals import ALL, Cell, Sum, merge, summarize, tally_of

METRICS = validation_metrics()


def draw_rows(count, seed=0):
    rng = random.Random(seed)
    # Values of very different sizes: sums of floats would depend on their order.
    return [{"bucket": rng.randrange(-1, 6)} | {m: rng.gauss(0, 10.0 ** rng.randrange(-9, 9)) for m in METRICS}
            for _ in range(count)]  # fmt: skip


def test_cells_are_those_of_the_statistics_module():
    rows = draw_rows(60)
    cells = summarize(tally_of(rows))
    assert list(cells) == [ALL, -1, 0, 1, 2, 3, 4, 5]
    for bucket, cell in cells.items():
        members = [row for row in rows if bucket in (ALL, row["bucket"])]
        assert cell["count"] == len(members)
        for name in METRICS:
            values = [row[name] for row in members]
            assert cell[name] == pytest.approx(statistics.fmean(values), rel=1e-12)
            assert cell[f"{name}_error"] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-12)


def test_any_order_and_any_split_give_the_same_bits():
    rows = draw_rows(50)
    expected = summarize(tally_of(rows))
    rng = random.Random(1)
    for parts in (1, 2, 7, 50):
        rng.shuffle(rows)
        tallies = [tally_of(rows[i::parts]) for i in range(parts)]
        rng.shuffle(tallies)
        merged = {}
        for tally in tallies:
            merged = merge(merged, tally)
        assert summarize(merged) == expected
    assert list(summarize(merged)) == list(expected)


def test_what_is_not_finite_is_counted_and_enters_no_mean():
    good = dict.fromkeys(METRICS, 4.0)
    exact = good | {"psnr": math.inf, "psnr_holes": math.inf, "l1": 0.0, "l1_holes": 0.0}
    failed = dict.fromkeys(METRICS, math.nan)
    rows = [{"bucket": 2} | row for row in (good, exact, failed, good | {"ssim_holes": math.nan})] + [
        {"bucket": 3} | failed
    ]
    cells = summarize(tally_of(rows))
    assert [(c["count"], c["failed"], c["exact"]) for c in cells.values()] == [(5, 2, 1), (4, 1, 1), (1, 1, 0)]
    assert cells[2] == cells[ALL] | {"count": 4, "failed": 1}
    assert cells[2]["psnr"] == 4 and cells[2]["psnr_error"] == 0 and cells[2]["ssim_holes"] == 4
    assert cells[2]["l1"] == pytest.approx(8 / 3) and cells[2]["l1_error"] == pytest.approx(4 / 3)
    assert all(math.isnan(cells[3][name]) and math.isnan(cells[3][f"{name}_error"]) for name in METRICS)
    assert Cell.of({"l1": 1.0, "psnr": None}, METRICS).sums == {"l1": Sum.of(1.0)}


def test_few_values():
    assert math.isnan(Sum().mean) and math.isnan(Sum.of(3.0).error) and Sum.of(3.0).mean == 3
    assert (Sum.of(3.0) + Sum.of(3.0)).error == 0
    # 1 + 1e-12 and 1: by floats the difference of squares would lose it.
    assert (Sum.of(1 + 1e-12) + Sum.of(1.0)).error == pytest.approx(5e-13, rel=1e-3)


def test_scores_by_hand():
    target = np.zeros((16, 16, 3), np.uint8)
    output, mask = target.copy(), np.ones((16, 16), np.uint8)
    mask[:8] = 0
    output[0, 0] = 51  # one of 256 pixels, of 128 in holes, a fifth of the range off
    found = intervals.score(output, target, mask)
    assert set(found) == set(METRICS)
    assert found["l1"] == pytest.approx(0.2 / 256) and found["l1_holes"] == pytest.approx(0.2 / 128)
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.04 / 256))
    assert found["psnr_holes"] == pytest.approx(-10 * math.log10(0.04 / 128))


def test_names_of_intervals():
    assert [intervals.interval_tag(b) for b in (ALL, -1, 0, 5)] == ["all", "other", "0.01-0.1", "0.5-0.6"]
    assert [intervals.interval_name(b) for b in (ALL, -1, 0, 5)] == ["all", "other", "(0.01, 0.1]", "(0.5, 0.6]"]
