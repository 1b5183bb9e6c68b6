"""Scores of inpainted images, and their mean and standard error by hole-ratio interval.

    tally = merge(tally_of(some rows), tally_of(other rows))
    summarize(tally)                  count, mean and standard error of every metric in every interval

Sums are exact, hence independent of the order of the rows and of how they were split. Values that are not finite
enter no sum; the pairs they belong to are counted as failed or exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from masks.coverage import RATIO_BUCKETS
from trainer.metrics import image_quality, validation_metrics

ALL = -2  # in place of an interval's number: all rows; -1 is a ratio outside all intervals


def interval_tag(bucket: int) -> str:
    """``0.1-0.2``, ``all`` or ``other``: the form without spaces, for TensorBoard tags, summary.json and log lines."""
    return _interval(bucket, "{:g}-{:g}")


def interval_name(bucket: int) -> str:
    """``(0.1, 0.2]``, ``all`` or ``other``: the paper's notation, for tables, the report and metrics.json."""
    return _interval(bucket, "({:g}, {:g}]")


def _interval(bucket: int, form: str) -> str:
    if bucket < 0:
        return "all" if bucket == ALL else "other"
    return form.format(*RATIO_BUCKETS[bucket])


def score(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The `validation_metrics` of two images uint8 [height, width, 3]; ``mask`` uint8 [height, width] of {0, 1}."""
    output, target = (image[None].astype(np.float64) / 255 for image in (output, target))
    found = image_quality.compare(output, target, mask[None, ..., None].astype(np.float64))
    return {name: float(np.asarray(found[name])[0]) for name in validation_metrics()}


@dataclass(frozen=True)
class Sum:
    """Count, sum and sum of squares of finite floats, exact."""

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, value: float) -> Sum:
        exact = Fraction(value)
        return cls(1, exact, exact * exact)

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """NaN for no values."""
        return float(self.total / self.count) if self.count else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean, from the unbiased variance; NaN for fewer than two values."""
        if self.count < 2:
            return math.nan
        variance = (self.squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(variance / self.count)


@dataclass
class Cell:
    """Sums of the scores of pairs.

    Attributes:
        pairs: number of pairs.
        failed: how many of them have no scores.
        exact: how many of them have an output equal to the target; their PSNR is infinite and enters no mean.
        sums: of the finite values, by metric.
    """

    pairs: int = 0
    failed: int = 0
    exact: int = 0
    sums: dict[str, Sum] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, float | None], names: Iterable[str]) -> Cell:
        """The cell of one pair. Values that are missing, None or not finite enter no sum.

        ``l1`` tells how the pair went, being finite for every image: a pair without it failed, one with 0 is exact.
        """
        values = ((name, row.get(name)) for name in names)
        sums = {name: Sum.of(value) for name, value in values if value is not None and math.isfinite(value)}
        return cls(1, int("l1" not in sums), int(row.get("l1") == 0), sums)

    def __add__(self, other: Cell) -> Cell:
        sums = dict(self.sums)
        for name, value in other.sums.items():
            sums[name] = sums.get(name, Sum()) + value
        return Cell(self.pairs + other.pairs, self.failed + other.failed, self.exact + other.exact, sums)


Tally = dict[int, Cell]  # by interval


def tally_of(rows: Iterable[Mapping[str, float]]) -> Tally:
    """Sums of rows that hold ``bucket`` (number of the interval) and the `validation_metrics`; `ALL` has every row."""
    tally: Tally = {}
    for row in rows:
        cell = Cell.of(row, validation_metrics())
        tally = merge(tally, {int(row["bucket"]): cell, ALL: cell})
    return tally


def merge(one: Tally, other: Tally) -> Tally:
    return {key: one.get(key, Cell()) + other.get(key, Cell()) for key in one.keys() | other.keys()}


def summarize(tally: Tally) -> dict[int, dict[str, float]]:
    """By interval, in order: ``count`` of pairs, how many of them ``failed`` or are ``exact`` (see `Cell`), and for
    each metric its mean as ``{metric}`` and standard error as ``{metric}_error``; NaN where there are too few values.
    """
    cells: dict[int, dict[str, float]] = {}
    for bucket, found in sorted(tally.items()):
        cell = cells[bucket] = {"count": found.pairs, "failed": found.failed, "exact": found.exact}
        for name in validation_metrics():
            values = found.sums.get(name, Sum())
            cell |= {name: values.mean, f"{name}_error": values.error}
    return cells
