"""Means and standard errors against the statistics module, and sums that do not depend on their order."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from trainer import scores
from trainer.scores import ALL, METRICS, Sum, merge, summarize, tally_of


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


def test_values_without_a_sum_show_in_the_mean():
    infinite = Sum.of(1.0) + Sum.of(math.inf)
    assert infinite.count == 2 and infinite.mean == math.inf and math.isnan(infinite.error)
    assert math.isnan((Sum.of(math.inf) + Sum.of(-math.inf)).mean)
    assert math.isnan((Sum.of(math.nan) + Sum.of(2.0)).mean)


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
    found = scores.score(output, target, mask)
    assert set(found) == set(METRICS)
    assert found["l1"] == pytest.approx(0.2 / 256) and found["l1_holes"] == pytest.approx(0.2 / 128)
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.04 / 256))
    assert found["psnr_holes"] == pytest.approx(-10 * math.log10(0.04 / 128))


def test_names_of_intervals():
    assert [scores.interval_name(b) for b in (ALL, -1, 0, 5)] == ["all", "other", "0.01-0.1", "0.5-0.6"]
