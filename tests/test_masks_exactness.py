"""masks.exactness against hand counts and slow loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from masks import coverage, exactness


def mask_of(*rows: str) -> np.ndarray:
    """'#' is a hole, '.' is valid."""
    return np.array([[character == "." for character in row] for row in rows], np.uint8)


def same(mask: np.ndarray, *rows: str) -> bool:
    return np.array_equal(mask, mask_of(*rows))


def row_mark(row: int, first: int, last: int, area: float, anchor: int) -> exactness.Mark:
    """Pixels first..last of one row."""
    return exactness.Mark(cv2.line, ((first, row), (last, row), 0, 1), area, (anchor, row))


@pytest.mark.parametrize("area", [0, 1, 5, 1000])
def test_paint_until_cuts_the_last_mark_alone(area):
    """Whatever the areas claim; the third mark crosses a hole of the first, which stays."""
    cross = exactness.Mark(cv2.line, ((2, 0), (2, 4), 0, 1), area, (2, 4))
    marks = [row_mark(1, 0, 3, area, 0), row_mark(4, 4, 6, area, 4), cross, row_mark(3, 0, 6, area, 0)]
    mask = np.ones((5, 7), np.uint8)
    exactness.paint_until(mask, marks, target=9, max_holes=9)
    assert same(mask, ".......", "####...", ".......", "..#....", "..#.###")


def test_paint_until_keeps_whole_marks_inside_the_interval():
    mask = np.ones((2, 8), np.uint8)
    exactness.paint_until(mask, [row_mark(0, 0, 4, 5, 0), row_mark(1, 0, 4, 5, 0), row_mark(0, 0, 7, 8, 0)], 6, 10)
    assert same(mask, "#####...", "#####...")


@pytest.mark.parametrize("area", [0, 1, 5])
@pytest.mark.parametrize(("target", "rows"), [(1, "#......."), (5, "#####...")])
def test_paint_until_draws_nothing_more_once_the_target_is_met(target, rows, area):
    mask = np.ones((2, 8), np.uint8)
    marks = [row_mark(0, 0, target - 1, area, 0), row_mark(1, 0, 4, area, 0)]
    exactness.paint_until(mask, marks, target, target)
    assert same(mask, rows, "........")


def test_paint_until_ends_when_marks_run_out():
    mask = np.ones((2, 8), np.uint8)
    exactness.paint_until(mask, [row_mark(0, 0, 4, 5, 0)], 6, 10)
    assert same(mask, "#####...", "........")


def test_paint_until_keeps_what_is_nearest_of_a_large_mark():
    x, y = 31, 17
    mark = exactness.Mark(cv2.rectangle, ((0, 0), (79, 59), 0, -1), 1.0, (x, y))
    nearest = sorted(np.ndindex(60, 80), key=lambda at: ((at[0] - y) ** 2 + (at[1] - x) ** 2, at))
    expected = np.ones((60, 80), np.uint8)
    for target, at in enumerate(nearest[:-1], 1):
        expected[at] = 0
        mask = np.ones((60, 80), np.uint8)
        exactness.paint_until(mask, [mark], target, target)
        assert np.array_equal(mask, expected)


def test_paint_until_on_a_view_leaves_the_rest():
    mask = np.ones((6, 9), np.uint8)
    exactness.paint_until(mask[1:-1, 1:-1], [row_mark(0, -5, 20, 7, 6)], 3, 3)
    assert same(mask, ".........", ".....###.", ".........", ".........", ".........", ".........")


def test_resize_holes_grows_and_shrinks_evenly():
    random = np.random.default_rng(0)
    point = mask_of(".....", ".....", "..#..", ".....", ".....")
    cross = mask_of(".....", "..#..", ".###.", "..#..", ".....")
    square = mask_of(".....", ".###.", ".###.", ".###.", ".....")
    for before, after in ((point, cross), (point, square), (cross, point), (square, point), (square, square)):
        mask = before.copy()
        exactness.resize_holes(mask, coverage.count_holes(after), random)
        assert np.array_equal(mask, after)


def test_of_pixels_equally_near_the_first_in_reading_order_changes():
    """The masks of a dataset are made again bit for bit, so this cannot be left to the sorting."""
    cut = np.ones((1, 7), np.uint8)
    exactness.paint_until(cut, [row_mark(0, 0, 6, 7, 3)], 2, 2)
    assert same(cut, "..##...")
    for before, target, after in (("...#...", 2, "..##..."), ("..###..", 2, "...##..")):
        mask = mask_of(before)
        exactness.resize_holes(mask, target, np.random.default_rng(0))
        assert same(mask, after)


def test_resize_holes_is_exact_for_any_mask_and_target():
    random = np.random.default_rng(1)
    canvas = np.ones((23, 31), np.uint8)
    mask = canvas[2:-2, 1:-1]  # 19 x 29 = 551 pixels, not contiguous
    for fraction in (0.0, 0.01, 0.5, 0.99, 1.0):
        for target in (0, 1, 2, 100, 550, 551):
            mask[:] = random.random(mask.shape) >= fraction
            exactness.resize_holes(mask, target, random)
            assert int((mask == 0).sum()) == target
            assert mask.max() <= 1
    assert int((canvas == 0).sum()) == 551  # those of the view, and none outside


def test_shift_to_border_takes_the_nearest_side():
    before = mask_of("........", "........", "........", ".##.....", ".#......", "........", "........", "........")
    after = mask_of("........", "........", "........", "##......", "#.......", "........", "........", "........")
    for quarter_turns in range(4):
        mask = np.rot90(before, quarter_turns).copy()
        exactness.shift_to_border(mask)
        assert np.array_equal(mask, np.rot90(after, quarter_turns))
    with pytest.raises(ValueError, match="expected one or more hole pixels"):
        exactness.shift_to_border(np.ones((3, 3), np.uint8))
