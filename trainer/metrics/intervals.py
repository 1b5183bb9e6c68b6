"""Scores of filled pictures, and their means by hole-ratio interval.

    tally = merge(tally_of(rows of one part), tally_of(rows of another))
    summarize(tally)                  count, mean and standard error of every metric in every interval

Sums are exact, so they are the same in any order and however the rows were split. What is no finite number enters
none of them, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import cv2
import numpy as np

from masks.coverage import RATIO_BUCKETS
from trainer.metrics import image_quality

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
    found = image_quality.compare(output, target, mask[None, ..., None].astype(np.float64))
    return {name: float(np.asarray(found[name])[0]) for name in METRICS}


def square_target(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle square of uint8 [height, width, 3], resized to [size, size, 3]."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Sum:
    """Count, sum and sum of squares of finite floats, without rounding."""

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
        """NaN of nothing."""
        return float(self.total / self.count) if self.count else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean, by the unbiased variance; NaN for fewer than two values."""
        if self.count < 2:
            return math.nan
        variance = (self.squares - self.total**2 / self.count) / (self.count - 1)
        return math.sqrt(variance / self.count)


@dataclass
class Cell:
    """Sums of the scores of pairs.

    Attributes:
        pairs: how many there are; of these
        failed: have no scores, and
        exact: have a picture equal to the target, whose PSNR is infinite and enters no mean.
        sums: of the finite values, by metric.
    """

    pairs: int = 0
    failed: int = 0
    exact: int = 0
    sums: dict[str, Sum] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, float | None], names: Iterable[str]) -> Cell:
        """One pair's; values that are missing, None or not finite enter no sum, and without an ``l1`` it failed."""
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
    """Sums of rows that have ``bucket`` (number of the interval) and `METRICS`; under `ALL` those of all rows."""
    tally: Tally = {}
    for row in rows:
        cell = Cell.of(row, METRICS)
        tally = merge(tally, {int(row["bucket"]): cell, ALL: cell})
    return tally


def merge(one: Tally, other: Tally) -> Tally:
    return {key: one.get(key, Cell()) + other.get(key, Cell()) for key in one.keys() | other.keys()}


def summarize(tally: Tally) -> dict[int, dict[str, float]]:
    """By interval, in order: ``count`` of pairs, and how many of them are ``failed`` or ``exact`` (see `Cell`); of each
    metric the mean under its name and ``{metric}_error``."""
    cells: dict[int, dict[str, float]] = {}
    for bucket, found in sorted(tally.items()):
        cell = cells[bucket] = {"count": found.pairs, "failed": found.failed, "exact": found.exact}
        for name in METRICS:
            values = found.sums.get(name, Sum())
            cell |= {name: values.mean, f"{name}_error": values.error}
    return cells
