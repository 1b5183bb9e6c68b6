"""masks.families.boxes: golden pixels, and boxes that are boxes."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from masks.coverage import RATIO_BUCKETS
from masks.families import boxes
from masks.sampling import MaskSpec, sample_mask

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=97, width=161, hole_ratio=(0.1, 0.2), border="touch", seed=3),
        7,
        "0c7cd48238370f43a3638c46c5e546e225d638106bf9407e4e8b475ac4108ed7",
    ),
    (
        dict(height=512, width=512, hole_ratio=(0.5, 0.6), border="none"),
        12,
        "75180950946babf4548c927c66657373ccc866a09058fc9803155c49cdb1325d",
    ),
]


def random(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def draw(index: int, side=256, hole_ratio=(0.2, 0.3), border="any") -> np.ndarray:
    spec = MaskSpec(generator="boxes", height=side, width=side, hole_ratio=hole_ratio, border=border)
    mask = np.ones((spec.height, spec.width), np.uint8)
    boxes.draw_boxes(random(index), spec.canvas(mask))
    return mask


def first_boxes(key: int, shape=(256, 256), ratio=0.25, border="any", count=8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centers and corners in pixels."""
    drawn = zip(boxes._boxes(random(key), shape, ratio, border), range(count), strict=False)
    return [(center / 16, corners / 16) for (center, corners), _ in drawn]


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    mask = sample_mask(MaskSpec(generator="boxes", **fields), index)
    assert hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest() == expected


def test_corners_are_those_of_rectangles_of_all_shapes_and_turns():
    turns, shapes = [], []
    for key in range(100):
        for _, corners in first_boxes(key):
            edges = np.roll(corners, -1, 0) - corners
            lengths = np.hypot(*edges.T)
            assert lengths == pytest.approx(np.roll(lengths, 2), abs=0.2)
            assert abs(edges[0] @ edges[1]) < 0.15 * (lengths[0] + lengths[1])  # 1/16 of a pixel off
            assert np.abs(corners.sum(0)).max() < 0.3  # seen from the center
            shapes.append(lengths[:2])
            # Shares of the square root of 0.25 * 256^2, which is 128.
            assert lengths.min() > 0.1 * 128 - 0.2 and lengths.max() < 0.75 * 128 + 0.2
            long = edges[0] if lengths[0] > lengths[1] else edges[1]
            turns.append(np.degrees(np.arctan2(long[1], long[0])) % 180)
        angles = np.array(turns[-8:]) % 90
        upright = np.minimum(angles, 90 - angles) < 0.5
        assert upright.all() or upright.sum() < 4  # all of a mask or by chance
    turns = np.array(turns)
    upright = np.minimum(turns % 90, 90 - turns % 90) < 0.5
    assert 0.35 < upright.mean() < 0.65
    counts, _ = np.histogram(turns[~upright], bins=6, range=(0, 180))
    assert counts.min() > 0.1 * counts.sum()
    first, second = np.array(shapes).T
    assert np.abs(np.corrcoef(first, second)[0, 1]) < 0.1 and first.std() > 20 and second.std() > 20


def test_painted_pixels_are_those_inside():
    for key in range(20):
        for center, corners in first_boxes(key, count=2):
            mask = np.ones((256, 256), np.uint8)
            boxes._paint(mask, np.rint(center * 16), np.rint(corners * 16))
            rows, columns = np.mgrid[:256, :256]
            inside = np.full(mask.shape, np.inf)  # pixels from the nearest side, more than 0 inside
            for corner, following in zip(corners, np.roll(corners, -1, 0), strict=True):
                edge = (following - corner) / np.hypot(*(following - corner))
                x, y = center + corner
                across = (columns - x) * edge[1] - (rows - y) * edge[0]
                inside = np.minimum(inside, across if across[int(center[1]), int(center[0])] > 0 else -across)
            assert not mask[inside > 1].any() and mask[inside < -1].all()


@pytest.mark.parametrize("shape", [(206, 206), (60, 300)])
@pytest.mark.parametrize("ratio", [0.05, 0.9])
def test_inner_boxes_lie_inside_as_a_whole(shape, ratio):
    """At a low ratio, few of them lie at the sides."""
    at_sides = []
    for key in range(60):
        for center, corners in first_boxes(key, shape, ratio, "none"):
            points = center + corners
            assert points.min() > -0.15 and (points.max(0) < np.array([shape[1], shape[0]]) - 1 + 0.15).all()
            at_sides.append(points.min() < 1 or (points.max(0) > np.array([shape[1], shape[0]]) - 2).any())
    assert np.mean(at_sides) < 0.25 if ratio < 0.1 else np.mean(at_sides) > 0.5


def test_the_last_box_is_made_smaller_as_a_whole(monkeypatch):
    """Upright masks: outlines have few corners, and all edges between them are upright, even in narrow intervals."""
    painted = []
    paint = boxes._paint
    monkeypatch.setattr(boxes, "_paint", lambda *args: (painted.append(args[2]), paint(*args)))
    upright = fitted = met = 0
    for index in range(60):
        painted.clear()
        mask = draw(index, hole_ratio=(0.3, 0.31))
        ratio = np.mean(mask == 0)
        met += 0.3 < ratio <= 0.31
        last = painted[-1]
        fitted += any(np.abs(corners * (last[0, 0] / corners[0, 0]) - last).max() < 2 for corners in painted[:-1])
        if np.unique(painted[0][:, 0]).size > 2:
            continue
        upright += 1
        contours, _ = cv2.findContours(1 - mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:
            edges = np.diff(contour[:, 0], axis=0, append=contour[:1, 0])
            # Of the outline of a hole in the holes, corners are cut by one pixel.
            assert (np.abs(edges).min(1) <= 1).all()
        assert sum(map(len, contours)) < 100
    assert upright >= 20 and fitted >= 40 and met >= 58


def test_sides_follow_the_ratio_and_the_size():
    for side in (128, 512):
        widths = []
        for low, high in RATIO_BUCKETS:
            corners = np.concatenate(
                [[c for _, c in first_boxes(k, (side, side), (low + high) / 2)] for k in range(20)]
            )
            widths.append(np.median(np.hypot(*(corners[:, 1] - corners[:, 0]).T)) / side)
        # The middle of 0.1 to 0.75 times sqrt(0.055) and sqrt(0.55)
        assert widths == sorted(widths)
        assert widths[0] == pytest.approx(0.425 * 0.2345, rel=0.15)
        assert widths[-1] == pytest.approx(0.425 * 0.7416, rel=0.15)


def test_boxes_are_few():
    """Not one, and not a heap of them."""
    counts = []
    paint, numbers = boxes._paint, []

    for index in range(30):
        for hole_ratio in RATIO_BUCKETS:
            numbers.clear()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(boxes, "_paint", lambda *args: (numbers.append(1), paint(*args)))
                draw(index, 128, hole_ratio)
            counts.append(len(numbers))
    assert 4 <= np.median(counts) <= 14


def test_work_is_bounded(monkeypatch):
    """Even where boxes at random no longer find a valid pixel, and where no size fits."""
    calls = []
    monkeypatch.setattr(boxes, "_paint", lambda *args: calls.append(1))
    assert draw(0, hole_ratio=(0.999, 1.0)).all() and len(calls) == boxes.MAX_BOXES

    def too_much(region, *args):
        calls.append(1)
        region[:] = 0

    calls.clear()
    monkeypatch.setattr(boxes, "_paint", too_much)
    draw(0)
    assert len(calls) == 1 + boxes.HALVINGS
