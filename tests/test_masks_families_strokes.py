"""masks.families.strokes: golden pixels, and the geometry of strokes against slow float64 answers."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from masks.coverage import RATIO_BUCKETS
from masks.families import strokes
from masks.sampling import MaskSpec, sample_mask

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=97, width=161, hole_ratio=(0.1, 0.2), border="touch", seed=3),
        7,
        "d0a2ff78e47ad6188f20f9d67a152f7c8ca436afdd78b1df456f4a1068011ceb",
    ),
    (
        dict(height=512, width=512, hole_ratio=(0.5, 0.6), border="none"),
        12,
        "7663b31d0fc1dbab14a0458dbc970852a51bdc29e1fc67d6a3fbf347bc298c7f",
    ),
]


def random(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def draw(index: int, height=128, width=128, hole_ratio=(0.2, 0.3), border="any") -> np.ndarray:
    spec = MaskSpec(generator="strokes", height=height, width=width, hole_ratio=hole_ratio, border=border)
    mask = np.ones((spec.height, spec.width), np.uint8)
    strokes.draw_strokes(random(index), spec.canvas(mask))
    return mask


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    mask = sample_mask(MaskSpec(generator="strokes", **fields), index)
    assert hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest() == expected


@pytest.mark.parametrize(
    ("start", "end", "radius_before", "radius"),
    [
        ((40, 50), (120, 90), 6, 20),
        ((120, 90), (40, 50), 20, 6),
        ((60, 30), (60, 130), 12, 12),
        ((60, 80), (100, 70), 5, 30),
        ((70, 80), (74, 80), 4, 25),  # one disc inside the other
    ],
)
def test_a_line_is_what_a_disc_sweeps_over_that_changes_its_size(start, end, radius_before, radius):
    joints, radii = np.array([[start, end]], float), np.array([[radius_before, radius]], float)
    outlines, areas = strokes._outlines(joints, radii)
    mask = np.ones((160, 160), np.uint8)
    strokes._paint(mask, outlines[0, 0], start, radius_before)
    strokes._paint(mask, outlines[0, 1], end, radius)
    rows, columns = np.mgrid[:160, :160]
    excess = np.full(mask.shape, np.inf)  # distance of each pixel to the nearest disc
    for fraction in np.linspace(0, 1, 400):
        x, y = (1 - fraction) * np.array(start) + fraction * np.array(end)
        distance = np.hypot(columns - x, rows - y) - ((1 - fraction) * radius_before + fraction * radius)
        excess = np.minimum(excess, distance)
    assert not mask[excess < -1].any() and mask[excess > 1].all()
    # The disc at the start belongs to the line before.
    area = np.count_nonzero(excess <= 0)
    assert areas[0, 0] == pytest.approx(np.pi * radius_before**2)
    assert 0.6 * area < areas[0, 1] < 1.5 * area


def test_a_stroke_hangs_together_and_a_mask_of_few_is_few_pieces():
    for index in range(20):
        mask = np.ones((256, 256), np.uint8)
        marks = strokes._marks(random(index), mask.shape, 0.3, "any")
        first = next(marks)
        first.draw(mask, *first.args)
        for line in range(strokes.MIN_LINES):
            mark = next(marks)
            assert mask[mark.anchor[1], mark.anchor[0]] == 0  # where the line before ended
            mark.draw(mask, *mark.args)
            assert cv2.connectedComponents(1 - mask)[0] == 2, (index, line)  # valid pixels, and one piece


def test_joints_zigzag_around_a_direction_and_all_directions_occur():
    """Until a joint is outside of the canvas's middle: from there a line, up to 300 long, could be turned back."""
    lines, headings = 0, []
    for index in range(150):
        joints, _, counts = strokes._joints(random(index), (1000, 1000), 0.2, "any", False)
        assert counts.min() >= 4 and counts.max() <= 12
        for stroke in joints:
            outside = (np.abs(stroke - 500) > 198).any(1)
            moves = np.diff(stroke[: int(outside.argmax()) + 1], axis=0)
            if len(moves) < 2:
                continue
            lengths = np.hypot(*moves.T)
            assert 58 < lengths.min() and lengths.max() < 302
            cross = moves[:-1, 0] * moves[1:, 1] - moves[:-1, 1] * moves[1:, 0]
            assert (cross[:-1] * cross[1:] < 0).all()  # left and right in turn
            angles = np.abs(np.degrees(np.arctan2(cross, (moves[:-1] * moves[1:]).sum(1))))
            assert 2 * 22 < angles.min() and angles.max() < 2 * 81
            lines += len(moves)
            headings.append(np.arctan2(*(moves[0] / lengths[0] + moves[1] / lengths[1])))
    quarters, _ = np.histogram(headings, bins=4, range=(-np.pi, np.pi))
    assert lines > 2.2 * len(headings) and len(headings) > 80
    assert quarters.min() > 0.15 * quarters.sum()


def test_width_varies_along_a_stroke_and_between_strokes():
    radii = np.concatenate([strokes._joints(random(index), (512, 512), 0.5, "any", False)[1] for index in range(30)])
    widest = radii.max(1)
    assert 0.42 < (radii.min(1) / widest).min() and np.median(radii.min(1) / widest) < 0.65
    # 512 * sqrt(0.5) times the fractions
    assert 10 <= widest.min() < 14 and 42 < widest.max() <= 47


def test_inner_strokes_lie_inside_as_a_whole():
    """And come near to all sides."""
    drawn = [strokes._joints(random(index), (300, 200), 0.9, "none", False) for index in range(20)]
    joints, radii = np.concatenate([one[0] for one in drawn]), np.concatenate([one[1] for one in drawn])[:, :, None]
    lowest, highest = (joints - radii).min((0, 1)), (joints + radii).max((0, 1))
    assert (lowest >= 0).all() and (lowest < 3).all()
    assert (highest <= [199, 299]).all() and (highest > [196, 296]).all()


def thickness_of(mask: np.ndarray) -> float:
    """Largest distance from a hole pixel to a valid one, over the side."""
    return cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5).max() / len(mask)


def test_thin_where_little_is_hole_and_thick_where_much():
    medians = [
        np.median([thickness_of(draw(index, 256, 256, hole_ratio)) for index in range(30)])
        for hole_ratio in RATIO_BUCKETS
    ]
    assert medians == sorted(medians)
    assert medians[0] < 0.04 and medians[-1] > 0.09


def test_looks_alike_at_every_size():
    """Thickness in proportion to the side."""
    small, large = (
        np.median([thickness_of(draw(index, side, side, (0.3, 0.4))) for index in range(30)]) for side in (128, 512)
    )
    assert 0.8 < small / large < 1.25


def test_work_is_bounded(monkeypatch):
    """Even where strokes at random no longer find a valid pixel."""
    drawn = 0

    def idle(mask, *args):
        nonlocal drawn
        drawn += 1

    monkeypatch.setattr(cv2, "circle", idle)
    monkeypatch.setattr(cv2, "fillConvexPoly", lambda *args: None)
    assert draw(0, hole_ratio=(0.999, 1.0)).all()
    assert strokes.MAX_STROKES * 5 <= drawn <= strokes.MAX_STROKES * 13
