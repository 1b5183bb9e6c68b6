"""Hole fillers: what is valid stays, what is hidden is not looked at, and two answers known by hand."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

from trainer.inference.baselines import BASELINES, fill_interpolated, fill_mean, fill_ns, fill_telea, fill_with_patches


def draw(height=24, width=17, hole_ratio=0.3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, (rng.random((height, width)) >= hole_ratio).astype(np.uint8)


def test_baselines_are_these():
    assert BASELINES == {
        "telea": fill_telea,
        "ns": fill_ns,
        "mean": fill_mean,
        "interpolation": fill_interpolated,
        "patchmatch": fill_with_patches,
    }


@pytest.mark.parametrize("fill", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("hole_ratio", [0, 0.05, 0.3, 0.95, 1])
def test_valid_pixels_stay_and_hidden_ones_do_not_matter(fill, hole_ratio):
    image, mask = draw(hole_ratio=hole_ratio)
    garbage, before = image.copy(), image.copy()
    garbage[mask == 0] = np.random.default_rng(1).integers(0, 256, (int((mask == 0).sum()), 3))
    filled = fill(image, mask)
    assert filled.dtype == np.uint8 and filled.shape == image.shape
    np.testing.assert_array_equal(filled[mask == 1], image[mask == 1])
    np.testing.assert_array_equal(fill(garbage, mask), filled)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("fill", BASELINES.values(), ids=BASELINES)
def test_one_color_is_continued(fill):
    _, mask = draw(seed=2)
    image = np.broadcast_to(np.uint8([250, 3, 128]), (*mask.shape, 3))
    # OpenCV's weights round to within 2 of 255.
    np.testing.assert_allclose(fill(image * mask[..., None], mask).astype(int), image, atol=2 * (fill is not fill_mean))


@pytest.mark.parametrize("fill", BASELINES.values(), ids=BASELINES)
def test_nothing_valid_gives_mid_gray(fill):
    image, _ = draw()
    np.testing.assert_array_equal(fill(image, np.zeros(image.shape[:2], np.uint8)), np.full_like(image, 128))


def test_patches_are_copied_from_elsewhere():
    """A pattern that repeats is continued, where interpolation blurs it; and in two threads alike."""
    rng = np.random.default_rng(3)
    image = np.tile(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (8, 8, 1))
    mask = np.ones((64, 64), np.uint8)
    mask[20:29, 30:41] = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        filled = list(pool.map(lambda _: fill_with_patches(image, mask), range(6)))
    errors = np.abs(filled[0].astype(int) - image)[mask == 0].mean()
    assert errors < 0.25 * np.abs(fill_interpolated(image, mask).astype(int) - image)[mask == 0].mean()
    assert all(np.array_equal(other, filled[0]) for other in filled)


def test_mean_by_hand():
    image = np.uint8([[[10, 0, 255], [20, 1, 255]], [[40, 1, 255], [99, 99, 99]]])
    mask = np.uint8([[1, 1], [1, 0]])
    assert fill_mean(image, mask)[1, 1].tolist() == [23, 1, 255]  # 70 / 3, 2 / 3, 255


def test_interpolation_by_hand():
    """One pixel, of which two neighbors are known: it and the other unknown one are relaxed twice."""
    image = np.uint8([[[0] * 3, [9] * 3, [200] * 3]])
    mask = np.uint8([[1, 0, 1]])
    # Pull: [0, -, 200] -> [0, 200] -> [100]. Push: 0, then twice (0 + 200 + x + x) / 4: 50, 75.
    assert fill_interpolated(image, mask)[0, 1].tolist() == [75, 75, 75]


@pytest.mark.parametrize("fill", [fill_telea, fill_ns, fill_interpolated])
def test_methods_that_look_at_edges_are_nearer_than_the_mean_on_a_ramp(fill):
    ramp = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (48, 40, 3))
    mask = np.ones((48, 40), np.uint8)
    mask[20:28, 10:30] = 0
    mask[2:6, 3:9] = 0  # far from the mean

    def error(filled):
        return np.abs(filled.astype(int) - ramp)[mask == 0].mean()

    assert error(fill(ramp * mask[..., None], mask)) < error(fill_mean(ramp * mask[..., None], mask)) / 2


def test_the_two_methods_of_opencv_differ():
    image, mask = draw(seed=3)
    assert np.any(fill_telea(image, mask) != fill_ns(image, mask))
