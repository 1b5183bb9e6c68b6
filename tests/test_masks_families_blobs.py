"""masks.families.blobs: golden pixels, and smooth noise against a slow float64 answer."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from masks.canvas import Canvas
from masks.coverage import RATIO_BUCKETS
from masks.families import blobs
from masks.sampling import BORDERS, MaskSpec, sample_mask

# A change here means that mask datasets made before can no longer be made again.
GOLDEN = [
    (
        dict(height=97, width=161, hole_ratio=(0.1, 0.2), border="touch", seed=3),
        7,
        "9922225a91aa09fbbeb0ee81fae62993fc98a510f200e98cb251069eb8cfea7d",
    ),
    (
        dict(height=512, width=512, hole_ratio=(0.5, 0.6), border="none"),
        12,
        "5e3b95bf4bc9dbacc0acc1c42718bc8593bf4bea716c9f621a656000cabe267a",
    ),
]


def random(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def draw(index: int, height=128, width=128, hole_ratio=(0.2, 0.3), border="any") -> np.ndarray:
    spec = MaskSpec(generator="blobs", height=height, width=width, hole_ratio=hole_ratio, border=border)
    mask = np.ones((spec.height, spec.width), np.uint8)
    blobs.draw_blobs(random(index), spec.canvas(mask))
    return mask


@pytest.mark.parametrize(("fields", "index", "expected"), GOLDEN)
def test_golden_pixels(fields, index, expected):
    mask = sample_mask(MaskSpec(generator="blobs", **fields), index)
    assert hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest() == expected


def cubic(distance: float) -> float:
    """The cubic B-spline, as the distribution of the sum of four numbers even over -1/2 to 1/2."""
    return sum((-1) ** k * choose * max(0.0, distance + 2 - k) ** 3 / 6 for k, choose in enumerate((1, 4, 6, 4, 1)))


@pytest.mark.parametrize(("samples", "cells", "phase"), [(64, 7.3, 0.0), (25, 20.0, 0.99), (40, 1.5, 0.4)])
def test_smooth_is_a_sum_of_splines(samples, cells, phase):
    lattice = random(1).integers(0, 256, (int(cells + phase) + 4, 3), np.int32)
    expected = np.zeros((samples, 3))
    for sample in range(samples):
        place = (sample + 0.5) * cells / samples + phase
        for point, values in enumerate(lattice):
            expected[sample] += cubic(place - (point - 1)) * values
    smooth = blobs._smooth(lattice, samples, cells, phase)
    assert smooth.dtype == np.int32
    assert np.abs(smooth / blobs.ONE - expected).max() < 255 * 4 * 0.5 / 1024


def test_numbers_stay_exact():
    """The largest there can be, smoothed along both axes and raised in a corner, fits int32."""
    lattice = np.full((10, 10), 255, np.int32)
    noise = blobs._smooth(blobs._smooth(lattice, 50, 5.5, 0.7).T, 50, 5.5, 0.7)
    assert noise.min() == pytest.approx(255 * 1024**2, rel=0.005)
    assert noise.max() + 2 * int(blobs._rise(1000, 0.1).max()) < 2**31


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("hole_ratio", [*RATIO_BUCKETS, (0.0, 1.0)])
def test_the_level_is_the_first_that_meets_the_target(hole_ratio, border, monkeypatch):
    targets = []
    original = Canvas.draw_target
    monkeypatch.setattr(Canvas, "draw_target", lambda *args: (targets.append(original(*args)), targets[-1])[1])
    for index in range(20):
        holes = np.count_nonzero(draw(index, hole_ratio=hole_ratio, border=border) == 0)
        assert hole_ratio[0] < holes / 128**2 <= hole_ratio[1]
        assert abs(holes - targets[-1]) < 0.02 * 128**2


@pytest.mark.parametrize("shape", [(200, 300), (33, 500)])
def test_noise_covers_its_range_and_is_smooth_at_every_scale(shape):
    changes = []
    for key in range(40):
        noise = blobs._noise(random(key), shape, 0.2, "any")
        assert noise.dtype == np.uint8 and noise.min() == 0 and noise.max() == 255
        assert noise.shape == tuple(max(min(length, 64), -(-length // 4)) for length in shape)
        changes.append(np.abs(np.diff(noise.astype(int), axis=1)).mean())
    assert max(changes) < 45 and max(changes) > 2 * min(changes)


def test_few_large_holes_and_many_small_ones_but_no_dust():
    pieces = [cv2.connectedComponents(1 - draw(index, 256, 256, (0.2, 0.3)))[0] - 1 for index in range(60)]
    assert min(pieces) <= 10 and 40 <= max(pieces) <= 120


def test_outlines_are_smooth():
    """Noise scaled up without anything between its samples would leave none of the squares of 4 x 4 mixed."""
    for index in range(20):
        squares = draw(index, 256, 256).reshape(64, 4, 64, 4).sum((1, 3))
        contours, _ = cv2.findContours(1 - draw(index, 256, 256), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        length = sum(map(len, contours))
        assert np.count_nonzero((squares > 0) & (squares < 16)) > length / 8


def test_looks_alike_at_every_size():
    """Largest distance from a hole pixel to a valid one, in proportion to the side."""
    small, large = (
        np.median(
            [cv2.distanceTransform(1 - draw(i, side, side), cv2.DIST_L2, 5).max() / side for i in range(40)],
        )
        for side in (128, 512)
    )
    assert 0.8 < small / large < 1.25


@pytest.mark.parametrize("shape", [(200, 200), (64, 300)])
def test_touching_noise_is_lowest_at_a_side(shape):
    """One of the four, each about as often; about, for there may be lower points between those of the lattice."""
    sides, minima = np.zeros(4), []
    for key in range(100):
        noise = blobs._noise(random(key), shape, 0.05, "touch")
        lowest = [noise[0].min(), noise[-1].min(), noise[:, 0].min(), noise[:, -1].min()]
        minima.append(min(lowest))
        sides[int(np.argmin(lowest))] += 1
    assert sides.min() >= 8
    assert np.median(minima) < 10 and max(minima) < 80


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.85, 0.93])
def test_inner_noise_is_high_along_the_sides_alone(ratio):
    for key in range(20):
        noise = blobs._noise(random(key), (412, 412), ratio, "none").astype(float)
        level = np.quantile(noise, ratio)
        ring = np.concatenate([noise[0], noise[-1], noise[:, 0], noise[:, -1]])
        assert (ring > level).mean() > 0.98
    # Away from them, holes are as likely as in the middle.
    holes = sum(1.0 - draw(key, 128, 128, (0.1, 0.15), "none")[13:-13, 13:-13] for key in range(200))
    assert holes[:, 51 - 30 : 51 + 30].mean() < 1.7 * np.mean(
        [holes[30:72, 12:20].mean(), holes[30:72, -20:-12].mean()]
    )
