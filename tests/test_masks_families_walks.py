"""masks.families.walks: golden pixels, and walks seen from what they leave."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from masks.coverage import RATIO_BUCKETS
from masks.families import walks
from masks.sampling import BORDERS, MaskSpec, sample_mask

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=97, width=161, hole_ratio=(0.1, 0.2), border="touch", seed=3),
        7,
        "d5be96f6c373d700cf19700165549f16663a7c7e8f5397bc8a79f114ae584093",
    ),
    (
        dict(height=512, width=512, hole_ratio=(0.5, 0.6), border="none"),
        12,
        "9fc1e24d0fd9a56b2bcea24b923f7c1460b8b2f1d527beab1c95c49e0b138991",
    ),
]


def random(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def draw(spec: MaskSpec, key: int) -> np.ndarray:
    """What the family draws, before anything is settled."""
    mask = np.ones((spec.height, spec.width), np.uint8)
    walks.draw_walks(random(key), spec.canvas(mask))
    return mask


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    mask = sample_mask(MaskSpec(generator="walks", **fields), index)
    assert hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest() == expected


@pytest.mark.parametrize("border", ["any", "touch"])
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_what_one_brush_has_covered_hangs_together_at_any_time(radius, border):
    """A later visit in place of the first one would tear it."""
    for key in range(10):
        times = walks._times(random(key), (200, 300), 0.02, radius, border, max_brushes=1)
        for time in (1, 2, 10, 50, 120, 254):
            pieces, _ = cv2.connectedComponents((times <= time).astype(np.uint8))
            assert pieces == 2, (key, time)  # valid pixels, and one piece


def slow_times(places, shape, radius):
    """First visits of round brushes by one step after the other; places are rows and columns [steps, brushes]."""
    times = np.full(shape, 255)
    steps, brushes = places[0].shape
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    offsets = np.argwhere(disc) - radius
    for step in range(steps):
        for brush in range(brushes):
            for row, column in offsets + [places[0][step, brush], places[1][step, brush]]:
                if 0 <= row < shape[0] and 0 <= column < shape[1]:
                    times[row, column] = min(times[row, column], 1 + step * 254 // steps)
    return times


def test_times_are_first_visits(monkeypatch):
    """Walks recorded where they are turned back, then walked again step by step."""
    recorded = []
    reflect = walks._reflect
    monkeypatch.setattr(walks, "_reflect", lambda place, last: (reflect(place, last), recorded.append(place.copy())))
    for few in (1, 6):
        recorded.clear()
        times = walks._times(random(few), (40, 60), 0.2, 2, "any", few)
        assert len(recorded) == 2
        assert np.array_equal(times, slow_times(recorded, (40, 60), 2))
        steps = np.abs(np.diff(recorded[0], axis=0))
        assert steps.max() == 3 and 0.9 < steps.mean() < 12 / 7 + 0.3  # of -3 to 3, 12 / 7 on average


def test_walks_wander_as_far_as_random_walks_do(monkeypatch):
    """Mean square distance = steps * variance of one step, along each axis and before any side turns them back."""
    recorded = []
    reflect = walks._reflect
    monkeypatch.setattr(walks, "_reflect", lambda place, last: (recorded.append(place.copy()), reflect(place, last)))
    for key in range(30):
        walks._times(random(key), (400, 4000), 0.3, 3, "any", max_brushes=6)
    squares, expected = 0.0, 0.0
    for places in recorded:
        moved = places[500] - places[0]
        squares += float((moved.astype(float) ** 2).sum())
        expected += moved.size * 500 * np.mean(np.arange(-4, 5) ** 2)
    assert 0.9 < squares / expected < 1.1


@pytest.mark.parametrize("shape", [(50, 70), (200, 20)])
def test_inner_brushes_stay_inside_as_a_whole(shape):
    """On a larger canvas they leave what is around it alone; the outermost pixels of the canvas are reached."""
    reached = np.zeros(shape, bool)
    for key in range(60):
        times = walks._times(random(key), shape, 0.5, 3, "none", 6)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
        opened = cv2.dilate(cv2.erode((times < 255).astype(np.uint8), disc, borderValue=0), disc)
        assert np.array_equal(opened, times < 255)  # whole discs cover it all
        reached |= times < 255
    assert reached[[0, -1]].any(1).all() and reached[:, [0, -1]].any(0).all()


def test_walls_wander():
    """Where many brushes fill the canvas, its outline is not straight."""
    for key in range(10):
        holes = walks._times(random(key), (200, 200), 0.6, 2, "none", 6) < 255
        first = [int(line.argmax()) for line in (holes[100 - 60 : 100 + 60])]
        assert max(first) - min(first) >= 8


def test_a_walk_is_walked_on_where_it_was_short(monkeypatch):
    """Holes of the part before stay, and target is met without anything left to settle."""
    calls = []
    original = walks._times

    def short(rng, shape, ratio, *rest):
        calls.append(original(rng, shape, ratio / 4, *rest))
        return calls[-1].copy()

    monkeypatch.setattr(walks, "_times", short)
    continued = 0
    for key in range(10):
        calls.clear()
        spec = MaskSpec(generator="walks", height=200, width=200, hole_ratio=(0.3, 0.32))
        mask = draw(spec, key)
        continued += len(calls) > 1
        assert all(not mask[times < 255].any() for times in calls[:-1])
        assert len(calls) == walks.MAX_PARTS or 0.3 < np.mean(mask == 0) <= 0.32
    assert continued >= 5


@pytest.mark.parametrize("border", BORDERS)
def test_one_part_is_nearly_always_enough(border, monkeypatch):
    calls = []
    original = walks._times
    monkeypatch.setattr(walks, "_times", lambda *args: (calls.append(1), original(*args))[1])
    for hole_ratio in RATIO_BUCKETS:
        spec = MaskSpec(generator="walks", height=256, width=256, hole_ratio=hole_ratio, border=border)
        for index in range(20):
            sample_mask(spec, index)
    assert 120 <= len(calls) <= 135


def test_work_is_bounded(monkeypatch):
    calls = []
    monkeypatch.setattr(walks, "_times", lambda rng, shape, *rest: calls.append(1) or np.full(shape, 255, np.uint8))
    spec = MaskSpec(generator="walks", height=64, width=64, hole_ratio=(0.999, 1.0))
    assert draw(spec, 0).all() and len(calls) == walks.MAX_PARTS


def test_thin_brushes_and_thick_ones_in_proportion_to_the_side():
    """Radius of the largest disc in masks of little hole, as a fraction of the side."""
    for side in (128, 512):
        spec = MaskSpec(generator="walks", height=side, width=side, hole_ratio=(0.01, 0.02))
        drawn = [draw(spec, key) for key in range(60)]
        thickness = [cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5).max() / side for mask in drawn]
        assert min(thickness) < 0.02 and 0.02 < np.median(thickness) < 0.04
