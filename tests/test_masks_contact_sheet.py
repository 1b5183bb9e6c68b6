"""masks.contact_sheet: where copies stand, what they show, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from masks.contact_sheet import GAP, HEADING, contact_sheet


def half(height: int, width: int) -> np.ndarray:
    """Left half holes."""
    mask = np.ones((height, width), np.uint8)
    mask[:, : width // 2] = 0
    return mask


def test_copies_stand_in_their_cells_with_black_holes():
    sheet = contact_sheet({"first": [half(256, 256), None], "second": [None, half(32, 32)]}, ["a", "b"], cell=64)
    label = sheet.shape[1] - 2 * (64 + GAP)
    assert sheet.dtype == np.uint8 and sheet.shape[0] == HEADING + GAP + 2 * (64 + GAP)
    for row, column in ((0, 0), (1, 1)):  # one shrunk, one enlarged
        top, left = HEADING + row * (64 + GAP), label + column * (64 + GAP)
        copy = sheet[top : top + 64, left : left + 64]
        assert (copy[:, :31] == 0).all() and (copy[:, 33:] == 255).all()
    for row, column in ((0, 1), (1, 0)):
        top, left = HEADING + row * (64 + GAP), label + column * (64 + GAP)
        assert len(np.unique(sheet[top : top + 64, left : left + 64])) == 1


def test_names_are_written():
    empty = contact_sheet({"": [None]}, [""], cell=64)
    named = contact_sheet({"strokes": [None]}, ["(0.1, 0.2]"], cell=64)
    assert len(np.unique(empty)) == 1 and len(np.unique(named)) > 2
    assert named.shape[1] > empty.shape[1]  # the label's column is as wide as its text


def test_proportions_are_kept():
    sheet = contact_sheet({"": [half(40, 80)]}, [""], cell=80)
    left = sheet.shape[1] - (80 + GAP)
    assert (sheet[HEADING : HEADING + 40, left : left + 39] == 0).all()
    assert (sheet[HEADING + 41 : HEADING + 80, left : left + 39] == sheet[0, 0]).all()


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"rows\['a'\]: expected 2 masks, one per column. Received 1."):
        contact_sheet({"a": [None]}, ["x", "y"])
