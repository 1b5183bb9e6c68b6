"""masks.coverage against hand counts and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from masks import coverage


def mask_of(*rows: str) -> np.ndarray:
    """'#' is a hole, '.' is valid."""
    return np.array([[character == "." for character in row] for row in rows], np.uint8)


def same(mask: np.ndarray, *rows: str) -> bool:
    return np.array_equal(mask, mask_of(*rows))


def test_hole_ratio_hand_counted():
    assert coverage.hole_ratio(mask_of("#...", "....", "...#", "##..")) == 4 / 16
    assert coverage.hole_ratio(mask_of("..", "..")) == 0.0
    assert coverage.hole_ratio(mask_of("###")) == 1.0
    assert coverage.hole_ratio(mask_of("##.").astype(bool)) == 2 / 3


@pytest.mark.parametrize(
    "wrong", [np.ones((2, 2, 1), np.uint8), np.ones((2, 2), np.float32), np.ones((0, 3), np.uint8), [[1, 0]], None]
)
def test_what_is_no_mask_is_refused(wrong):
    with pytest.raises(ValueError, match=r"mask: expected a uint8 array \[height, width\].* Received"):
        coverage.hole_ratio(wrong)


def test_buckets_are_the_papers_and_half_open():
    assert coverage.RATIO_BUCKETS == ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))
    above = {ratio: math.nextafter(ratio, 1) for ratio in (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}
    assert [coverage.bucket_of(ratio) for ratio in above] == [-1, 0, 1, 2, 3, 4, 5]
    assert [coverage.bucket_of(ratio) for ratio in above.values()] == [0, 1, 2, 3, 4, 5, -1]
    outside = (-1.0, 0.0, 0.61, 1.0, math.nan)
    assert [coverage.bucket_of(ratio) for ratio in outside] == [-1] * 5


def test_ratio_of_whole_pixels_falls_on_the_closed_side():
    """3 of 10 pixels are bucket (0.2, 0.3], though 0.1 * 3 > 0.3 in floating point."""
    for tenths, bucket in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5)):
        mask = np.ones((10, 70), np.uint8)
        mask[:tenths] = 0
        assert coverage.bucket_of(coverage.hole_ratio(mask)) == bucket


@pytest.mark.parametrize(
    ("size", "margin"),
    [((512, 512), 50), ((256, 256), 25), ((1024, 1024), 100), ((128, 128), 13), ((97, 161), 9), ((161, 97), 9)]
    + [((512, 2000), 50), ((16, 16), 2), ((4, 4), 1)],
)
def test_border_margin_by_hand(size, margin):
    assert coverage.border_margin(*size) == margin


def test_touches_border_by_hand():
    mask = mask_of("......", "......", "...#..", "......", "......", "......")  # 2 pixels from top, right side 2
    assert [coverage.touches_border(mask, margin) for margin in (0, 1, 2, 3, 100)] == [False, False, False, True, True]
    corner = mask_of("#..", "...", "...")
    assert [coverage.touches_border(corner, margin) for margin in (0, 1)] == [False, True]
    assert not coverage.touches_border(np.ones((3, 3), np.uint8), 2)
    with pytest.raises(ValueError, match="margin: expected 0 pixels or more. Received -1"):
        coverage.touches_border(corner, -1)


def test_touches_border_on_each_side():
    """One hole anywhere in a 7 x 9 mask, every margin: the distance to the nearest of the four sides decides."""
    for row in range(7):
        for column in range(9):
            mask = np.ones((7, 9), np.uint8)
            mask[row, column] = 0
            distance = min(row, column, 6 - row, 8 - column)
            for margin in range(6):
                assert coverage.touches_border(mask, margin) == (distance < margin), (row, column, margin)


def test_pixel_interval_against_counting():
    assert coverage.pixel_interval(0.1, 0.2, 100) == (11, 20)
    assert coverage.pixel_interval(0.0, 1.0, 7) == (1, 7)
    random = np.random.default_rng(0)
    bounds = [*coverage.RATIO_BUCKETS, (0.0, 0.001), (0.999, 1.0), *np.sort(random.random((50, 2))).tolist()]
    for pixels in (1, 7, 10, 100, 256, 961, 1000):
        for low, high in bounds:
            allowed = [n for n in range(pixels + 1) if low < n / pixels <= high]
            smallest, largest = coverage.pixel_interval(low, high, pixels)
            assert list(range(smallest, largest + 1)) == allowed, (low, high, pixels)
