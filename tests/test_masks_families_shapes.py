"""masks.families.shapes: what the family looks like, in numbers that wrong geometry would miss."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from masks.coverage import RATIO_BUCKETS
from masks.families import shapes
from masks.sampling import MaskSpec


def draw(index: int, height=128, width=128, hole_ratio=(0.2, 0.3), border="any") -> np.ndarray:
    spec = MaskSpec(generator="shapes", height=height, width=width, hole_ratio=hole_ratio, border=border)
    mask = np.ones((spec.height, spec.width), np.uint8)
    shapes.draw_shapes(np.random.Generator(np.random.Philox(key=index)), spec.canvas(mask))
    return mask


@pytest.mark.parametrize("border", ["any", "none", "touch"])
@pytest.mark.parametrize("hole_ratio", RATIO_BUCKETS)
def test_meets_its_spec_before_anything_is_settled(hole_ratio, border):
    for index in range(20):
        mask = draw(index, hole_ratio=hole_ratio, border=border)
        assert hole_ratio[0] < np.count_nonzero(mask == 0) / mask.size <= hole_ratio[1]
        outside = mask.copy()
        outside[13:-13, 13:-13] = 1
        if border != "any":
            assert outside.all() == (border == "none")


def test_holes_lie_everywhere():
    """Both axes of a canvas that is not square, in each quarter alike; x and y swapped would leave half of it empty."""
    holes = sum(1.0 - draw(index, height=64, width=256) for index in range(300))
    quarters = [holes[:32, :128], holes[:32, 128:], holes[32:, :128], holes[32:, 128:]]
    fractions = [quarter.sum() / holes.sum() for quarter in quarters]
    assert max(fractions) < 0.29 and min(fractions) > 0.21
    assert holes.min() > 0


def test_touching_holes_use_all_four_sides():
    """Small ratios, where the line from the border is a large part of the mask."""
    masks = [draw(index, hole_ratio=(0.01, 0.02), border="touch") for index in range(200)]
    touching = np.array(
        [[not mask[edge].all() for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])] for mask in masks]
    )
    assert touching.any(axis=1).all()
    assert touching.sum(axis=0).min() >= 40


def test_ratios_spread_over_the_interval():
    ratios = [np.count_nonzero(draw(index) == 0) / 128**2 for index in range(300)]
    counts, _ = np.histogram(ratios, bins=[0.2, 0.225, 0.25, 0.275, 0.3])
    assert counts.sum() == 300 and counts.min() >= 30


def thickness_of(mask: np.ndarray) -> float:
    """Largest distance from a hole pixel to a valid one, over the side."""
    return cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5).max() / len(mask)


def test_thin_where_little_is_hole_and_thick_where_much():
    medians = [
        np.median([thickness_of(draw(index, 256, 256, hole_ratio)) for index in range(30)])
        for hole_ratio in RATIO_BUCKETS
    ]
    assert medians == sorted(medians)
    assert medians[0] < 0.03 and medians[-1] > 0.06


def test_looks_alike_at_every_size():
    """Thickness in proportion to the side."""
    small, large = (
        np.median([thickness_of(draw(index, side, side, (0.3, 0.4))) for index in range(30)]) for side in (128, 512)
    )
    assert 0.8 < small / large < 1.25


def test_all_three_kinds_are_drawn(monkeypatch):
    drawn = {"line": 0, "circle": 0, "ellipse": 0}

    def counting(name):
        original = getattr(cv2, name)

        def call(*args):
            drawn[name] += 1
            return original(*args)

        return call

    for name in drawn:
        monkeypatch.setattr(cv2, name, counting(name))
    for index in range(30):
        draw(index)
    total = sum(drawn.values())
    assert total > 30 * 10
    assert all(count > 0.2 * total for count in drawn.values()), drawn


@pytest.mark.parametrize("hole_ratio", [(0.9, 0.92), (0.999, 1.0)])
def test_work_is_bounded(hole_ratio, monkeypatch):
    """Even where shapes at random no longer find a valid pixel."""
    drawn = 0

    def idle(mask, *args):
        nonlocal drawn
        drawn += 1

    for name in ("line", "circle", "ellipse"):
        monkeypatch.setattr(cv2, name, idle)
    assert draw(0, hole_ratio=hole_ratio).all()
    assert drawn == shapes.MAX_SHAPES


@pytest.mark.parametrize("axes", [(40, 20), (20, 40), (30, 30)])
@pytest.mark.parametrize("turn", [0, 35, 120])
@pytest.mark.parametrize("start", [0, 50, 200, 340])
def test_anchor_of_an_arc_is_its_first_point(axes, turn, start):
    """A short arc at the anchor: its pixels lie within its length of it."""
    mark = shapes._arc((60, 70), axes, turn, start, 5, 1)
    mask = np.ones((140, 140), np.uint8)
    mark.draw(mask, *mark.args)
    rows, columns = np.nonzero(mask == 0)
    distances = np.hypot(columns - mark.anchor[0], rows - mark.anchor[1])
    assert distances.min() <= 1 and distances.max() <= np.radians(5) * max(axes) + 1.5
