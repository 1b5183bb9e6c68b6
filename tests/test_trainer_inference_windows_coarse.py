"""Holes larger than a window: filled at half the scale first, from which the full scale takes one pixel in four."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.inference import filling
from trainer.inference.filling import Model, fill_images, halve
from trainer.inference.windows import Box, Tiling, make_sides


class Recorder:
    """Stands for a network: gives each window's valid mean everywhere, or its own number, and keeps what it saw."""

    def __init__(self, numbered=False):
        self.seen, self._numbered = [], numbered

    def __call__(self, image, mask):
        self.seen.append((image.copy(), mask.copy()))
        weight = np.maximum(mask.sum((1, 2), keepdims=True), 1)
        mean = (image * mask).sum((1, 2), keepdims=True) / weight
        output = np.broadcast_to(mean, image.shape).copy()
        return output + len(self.seen) * 0.01 if self._numbered else output


def make_model(predict, size=64, batch_size=1):
    tiling = Tiling(size=size)
    return Model(predict, 8, make_sides(8, largest=size), batch_size, tiling)


def wavy(height, width, dtype=np.uint8, channels=3):
    """A smooth picture."""
    y, x = np.mgrid[:height, :width] / 40
    planes = [0.5 + 0.4 * np.sin(y + k) * np.cos(x - k) for k in range(channels)]
    return np.rint(np.stack(planes, 2) * np.iinfo(dtype).max).astype(dtype)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_half_scale_is_the_mean_of_what_is_valid(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.integers(0, 2, (height, width), np.uint8)
    coarse, valid = halve(pixels, mask)
    assert coarse.shape == (-(-height // 2), -(-width // 2), 3) and valid.shape == coarse.shape[:2]
    for y, x in np.ndindex(valid.shape):
        block = pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(-1, 3)
        known = block[mask[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel() == 1].astype(float)
        assert valid[y, x] == (len(known) > 0)
        if len(known):
            assert np.abs(coarse[y, x] - known.mean(0)).max() <= 0.5


def test_half_scale_has_no_seam_between_strips(monkeypatch):
    pixels, mask = wavy(101, 30), (np.arange(30) % 5 > 0).astype(np.uint8)[None].repeat(101, 0)
    whole = halve(pixels, mask)
    monkeypatch.setattr(filling, "_STRIP", 6)
    for ours, theirs in zip(halve(pixels, mask), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_hole_larger_than_a_window_is_filled_from_what_is_around_it():
    """Every window of the finest level sees colors of far away, so its middle is not left to chance or black."""
    pixels, mask = wavy(400, 400), np.ones((400, 400), np.uint8)
    pixels[:] = np.linspace(40, 200, 400)[None, :, None].astype(np.uint8)  # a ramp: left is darker
    mask[30:370, 30:370] = 0
    image = pixels.copy()
    recorder = Recorder()
    (windows,) = fill_images([pixels], [mask], make_model(recorder))
    assert windows == len(recorder.seen) > 64  # 8 x 8 at full scale, and the coarse ones
    assert all(valid.any() for _, valid in recorder.seen)
    inside = pixels[200, 35:365, 0].astype(float)
    assert inside.min() > 40 and inside.max() < 200
    assert inside[:60].mean() < inside[150:180].mean() < inside[-60:].mean()
    assert np.abs(inside - image[200, 35:365, 0]).mean() < 20


def test_the_guide_is_one_pixel_in_four_of_the_deep_holes_and_in_place():
    """With a network that is exact on a ramp, the samples must be the ramp's own values, not those of a neighbor."""
    ramp = (np.arange(400, dtype=np.float64)[:, None] * 100 + np.arange(400)[None] * 50 + 500)[..., None]
    pixels, mask = ramp.astype(np.uint16).repeat(3, 2), np.ones((400, 400), np.uint8)
    mask[101:299, 83:299] = 0
    box = Box(101, 83, 299, 299)
    exact = ramp.repeat(3, 2)

    def solve(coarse, coarse_mask, model):  # the half scale, known exactly
        (part,), top, left = coarse, (101 - 32) // 2 * 2, (83 - 32) // 2 * 2
        blocks = exact[top : top + 2 * part.shape[0], left : left + 2 * part.shape[1]]
        part[:] = np.rint(blocks.reshape(part.shape[0], 2, part.shape[1], 2, 3).mean((1, 3)))
        return [1]

    original = filling.fill_images
    filling.fill_images = solve
    try:
        guide, _ = filling._make_guide(pixels, mask, box, make_model(None))
    finally:
        filling.fill_images = original
    for top, left in ((120, 140), (121, 140), (120, 141), (151, 133)):
        image = np.zeros((64, 64, 3), np.float32)
        valid = mask[top : top + 64, left : left + 64, None].astype(np.float32)
        guide.add(image, valid, top, left)
        assert valid.sum() == 32 * 32  # everything here is deep
        y, x = np.nonzero(valid[..., 0])
        assert np.all((y + top) % 2 == 0) and np.all((x + left) % 2 == 0)
        found = image[y, x] * 65535
        np.testing.assert_allclose(found, exact[y + top, x + left], atol=1.0)
    image, valid = np.zeros((64, 64, 3), np.float32), mask[90:154, 80:144, None].astype(np.float32)
    before = valid.copy()
    guide.add(image, valid, 90, 80)
    added = (valid != before)[..., 0]
    assert added.any() and np.all(mask[90:154, 80:144][added] == 0)
    # 8 pixels of margin: what is nearer to a valid pixel is left to the network alone.
    y, x = np.nonzero(added)
    assert (y + 90).min() >= 101 + 8 and (x + 80).min() >= 83 + 8
