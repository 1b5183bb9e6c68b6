"""Scores of filled pictures, and their means by hole-ratio interval.

    tally = merge(tally_of(rows of one part), tally_of(rows of another))
    summarize(tally)                  count, mean and standard error of every metric in every interval

Sums are exact, so they are the same in any order and however the rows were split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from masks.coverage import RATIO_BUCKETS
from trainer import metrics

METRICS = ("psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes")
ALL = -2  # in place of an interval's number: all rows; -1 is a ratio outside of all intervals


def interval_name(bucket: int) -> str:
    """``all``, ``other`` or the hole ratios of an interval, such as ``0.1-0.2``."""
    if bucket < 0:
        return "all" if bucket == ALL else "other"
    return "{:g}-{:g}".format(*RATIO_BUCKETS[bucket])


def score(output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """`METRICS` of uint8 [height, width, 3] pictures; ``mask`` uint8 [height, width] of {0, 1}."""
    output, target = (picture[None].astype(np.float64) / 255 for picture in (output, target))
    found = metrics.compare(output, target, mask[None, ..., None].astype(np.float64))
    return {name: float(np.asarray(found[name])[0]) for name in METRICS}


def square_target(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [height, width, 3], resized to [size, size, 3]."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Sum:
    """Count, sum and sum of squares of floats, without rounding.

    Attributes:
        unbounded: sum of those values that were infinite or NaN, which have no exact sum.
    """

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)
    unbounded: float = 0.0

    @classmethod
    def of(cls, value: float) -> Sum:
        if not math.isfinite(value):
            return cls(1, unbounded=value)
        exact = Fraction(value)
        return cls(1, exact, exact * exact)

    def __add__(self, other: Sum) -> Sum:
        return Sum(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.unbounded + other.unbounded,
        )

    @property
    def mean(self) -> float:
        """NaN of nothing."""
        if self.unbounded or not self.count:
            return self.unbounded or math.nan
        return float(self.total / self.count)

    @property
    def error(self) -> float:
        """Standard error of the mean, by the unbiased variance; NaN for fewer than two values."""
        if self.unbounded or self.count < 2:
            return math.nan
        variance = (self.squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(variance / self.count)


Tally = dict[tuple[int, str], Sum]  # by interval and metric


def tally_of(rows: Iterable[Mapping[str, float]]) -> Tally:
    """Sums of rows that have ``bucket`` (number of the interval) and `METRICS`; under `ALL` those of all rows."""
    tally: Tally = {}
    for row in rows:
        for name in METRICS:
            value = Sum.of(row[name])
            for bucket in (int(row["bucket"]), ALL):
                tally[bucket, name] = tally.get((bucket, name), Sum()) + value
    return tally


def merge(one: Tally, other: Tally) -> Tally:
    return {key: one.get(key, Sum()) + other.get(key, Sum()) for key in one.keys() | other.keys()}


def summarize(tally: Tally) -> dict[int, dict[str, float]]:
    """By interval, in order: ``count``, and of each metric the mean under its name and ``{metric}_error``."""
    cells: dict[int, dict[str, float]] = {}
    for bucket, name in sorted(tally, key=lambda key: (key[0], METRICS.index(key[1]))):
        found = tally[bucket, name]
        cell = cells.setdefault(bucket, {"count": found.count})
        cell |= {name: found.mean, f"{name}_error": found.error}
    return cells
