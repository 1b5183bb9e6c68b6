"""Sums of scores by cell: exact, mergeable, and shown for what they are."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from pipelines.engines.on_beam.evaluate import TallyRows
from pipelines.evaluation import scoreboard
from pipelines.evaluation.scoreboard import board_of, merge_into, summarize
from trainer.metrics import validation_metrics


def make_row(pair, method, value, bucket=2, border=0, **changes) -> dict:
    place = {"pair": pair, "method": method, "bucket": bucket, "border": border}
    return (
        place | (dict.fromkeys(validation_metrics(), value) if value is not None else {"error": "no picture"}) | changes
    )


def cell_of(cells, method, interval="all", border="all"):
    (cell,) = (c for c in cells if (c["method"], c["interval"], c["border"]) == (method, interval, border))
    return cell


def total(pairs, reference="a"):
    board: dict = {}
    for rows in pairs:
        merge_into(board, board_of(rows, reference))
    return summarize(board, ["a", "b"], reference)


def test_means_and_errors_do_not_depend_on_order_or_split():
    values = [1e16, 1.0, -1e16, 3.0]  # added from left to right 3, the other way 0
    pairs = [[make_row(i, "a", v, bucket=i % 2), make_row(i, "b", v + 1, bucket=i % 2)] for i, v in enumerate(values)]
    combine = TallyRows("a")
    expected = total(pairs)
    assert cell_of(expected[0], "a")["metrics"]["l1"]["mean"] == 1.0
    for order in itertools.permutations(pairs):
        accumulators = [combine.add_input(combine.create_accumulator(), rows) for rows in order]
        left = combine.merge_accumulators([combine.merge_accumulators(accumulators[:2]), *accumulators[2:]])
        assert summarize(left, ["a", "b"], "a") == expected


def test_cells_by_hand():
    values = [(0, 0, 4.0), (0, 0, 6.0), (0, 1, 9.0), (3, 1, 1.0)]
    cells, _ = total([[make_row(i, "a", v, bucket, border)] for i, (bucket, border, v) in enumerate(values)])
    expected = {
        ("(0.01, 0.1]", "none"): [4, 6],
        ("(0.01, 0.1]", "touch"): [9],
        ("(0.01, 0.1]", "all"): [4, 6, 9],
        ("(0.3, 0.4]", "all"): [1],
        ("(0.1, 0.2]", "all"): [],
        ("all", "touch"): [9, 1],
        ("all", "all"): [4, 6, 9, 1],
    }
    for (interval, border), numbers in expected.items():
        cell = cell_of(cells, "a", interval, border)
        mean = np.mean(numbers) if numbers else None
        error = np.std(numbers, ddof=1) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
        assert cell["pairs"] == len(numbers) and cell["metrics"]["psnr"]["count"] == len(numbers)
        assert cell["metrics"]["psnr"]["mean"] == mean
        assert cell["metrics"]["psnr"]["error"] == (error if error is None else pytest.approx(error, rel=1e-14))
    assert len(cells) == 2 * 7 * 3 and not any(cell["interval"] == "other" for cell in cells)
    with_others, _ = total([[make_row(0, "a", 1.0, bucket=-1)]])
    assert cell_of(with_others, "a", "other", "none")["pairs"] == 1 and len(with_others) == 2 * 8 * 3


def test_failed_exact_and_undefined_values_are_counted_and_left_out():
    pairs = [
        [make_row(0, "a", 20.0), make_row(0, "b", 10.0)],
        [make_row(1, "a", 30.0), make_row(1, "b", None)],
        [make_row(2, "a", 0.0, psnr=None, psnr_holes=None), make_row(2, "b", 7.0, ssim_holes=None)],
    ]
    cells, differences = total(pairs)
    one, other, difference = cell_of(cells, "a"), cell_of(cells, "b"), cell_of(differences, "b")
    counts = [(c["pairs"], c["failed"], c["exact"]) for c in (one, other, difference)]
    assert counts == [(3, 0, 1), (3, 1, 0), (3, 1, 0)]
    assert one["metrics"]["psnr"] == {"count": 2, "mean": 25.0, "error": 5.0}
    assert one["metrics"]["ssim"]["mean"] == pytest.approx(50 / 3)
    assert other["metrics"]["ssim_holes"] == {"count": 1, "mean": 10.0, "error": None}
    assert difference["metrics"]["psnr"] == {"count": 1, "mean": -10.0, "error": None}
    _, lacking = total([[make_row(0, "a", None), make_row(0, "b", 1.0)]])
    assert cell_of(lacking, "b")["failed"] == 1 and cell_of(lacking, "b")["metrics"]["l1"]["count"] == 0
    assert difference["metrics"]["l1"] == {"count": 2, "mean": -1.5, "error": 8.5}
    json.dumps(cells, allow_nan=False)
    lines = scoreboard.format_table(cells).splitlines()
    assert "| all | all | b | 3 (1 failed) | 8.50 ± 1.50 | 8.50 ± 1.50 | 8.500 ± 1.500 | 10.000 |" in lines[-1]
    assert "| 3 (1 exact) | 25.00 ± 5.00 |" in lines[-2]
    assert lines[2] == "| (0.01, 0.1] | none | a | none | – | – | – | – | – | – |"
    shown = scoreboard.format_table(differences, differences=True).splitlines()[-1]
    assert shown.startswith("| all | all | b − a | 3 (1 failed) | -10.00 |")
