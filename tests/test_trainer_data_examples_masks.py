"""Each way to vary a mask against NumPy and OpenCV; binary always, the ratio kept where it should be."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from masks.codec import encode_mask
from masks.coverage import hole_ratio
from masks.sampling import MaskSpec, sample_mask
from trainer.config import DataConfig
from trainer.data import examples

SIZE = 33
SPEC = MaskSpec(generator="shapes", height=SIZE, width=SIZE, hole_ratio=(0.1, 0.5), seed=1)
NOTHING = dict(mask_flip=False, mask_turn=False)


def stored(index):
    return sample_mask(SPEC, index)


def augmented(mask, count, **fields):
    """Numpy [count, S, S], each with draws of its own."""
    config = DataConfig(**fields)
    draws = [examples.draw_numbers(5, number)[-examples.MASK_DRAWS :].tolist() for number in range(count)]
    found = np.stack([examples.augment_mask(mask, numbers, config) for numbers in draws])
    assert found.dtype == np.uint8 and found.shape == (count, *mask.shape)
    assert np.isin(found, (0, 1)).all()
    return found


def counted(found, variants):
    """How often each of the variants, all different, was found."""
    known = {variant.tobytes(): k for k, variant in enumerate(variants)}
    assert len(known) == len(variants)
    return np.bincount([known[mask.tobytes()] for mask in found], minlength=len(variants))


def turned(mask):
    return [np.rot90(mask, k) for k in range(4)]


@pytest.mark.parametrize(
    ("fields", "variants"),
    [
        (dict(), lambda m: turned(m) + turned(m[::-1])),
        (dict(mask_flip=False), turned),
        (dict(mask_turn=False), lambda m: [m, m[::-1], m[:, ::-1], m[::-1, ::-1]]),
        (NOTHING, lambda m: [m]),
    ],
)
def test_flips_and_turns_are_equally_often_each_symmetry(fields, variants):
    expected = variants(stored(3))
    counts = counted(augmented(stored(3), 400, **fields), expected)
    share = 1 / len(expected)
    assert abs(counts - 400 * share).max() <= 4 * (400 * share * (1 - share)) ** 0.5


def test_flips_and_turns_keep_the_ratio():
    for index in range(10):
        found = augmented(stored(index), 8)
        assert {hole_ratio(mask) for mask in found} == {hole_ratio(stored(index))}


@pytest.mark.parametrize("radius", [0, 1, 4, 40])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (20, 31)])
def test_holes_grow_as_opencv_dilates_them(radius, shape):
    for index in range(5):
        mask = cv2.resize(stored(index), shape[::-1], interpolation=cv2.INTER_NEAREST)
        found = examples.dilate_holes(mask, radius)
        np.testing.assert_array_equal(found, cv2.erode(mask, np.ones((2 * radius + 1,) * 2, np.uint8)), strict=True)


def test_holes_grow_by_every_number_of_pixels_up_to_the_bound():
    mask = stored(2)
    grown = [cv2.erode(mask, np.ones((2 * r + 1,) * 2, np.uint8)) for r in range(4)]
    counts = counted(augmented(mask, 200, mask_dilate=3, **NOTHING), grown)
    assert counts.min() > 25


def cut_slowly(mask, top, left, side):
    found = np.full_like(mask, 1)
    for i in range(len(mask)):
        for j in range(len(mask)):
            y, x = (int(np.floor((k + 0.5) * side / len(mask))) for k in (i, j))
            if 0 <= top + y < len(mask) and 0 <= left + x < len(mask):
                found[i, j] = mask[top + y, left + x]
    return found


@pytest.mark.parametrize("place", [(0, 0, 33), (5, -7, 33), (-33, 0, 33), (9, 4, 20), (-3, 20, 16), (32, 32, 1)])
def test_a_cut_is_nearest_neighbor_and_valid_outside(place):
    found = examples.cut(stored(0), *place)
    np.testing.assert_array_equal(found, cut_slowly(stored(0), *place), strict=True)


def test_shifts_reach_the_bound_both_ways_and_not_beyond():
    mask = np.ones((20, 20), np.uint8)
    mask[8:12, 7:10] = 0
    found = augmented(mask, 300, mask_shift=0.2, **NOTHING)
    assert ((found == 0).sum(axis=(1, 2)) == 12).all()
    top, left = ((found == 0).any(axis=axis).argmax(axis=1) for axis in (2, 1))
    assert set(top) == set(range(4, 13)) and set(left) == set(range(3, 12))
    assert abs(np.corrcoef(top, left)[0, 1]) < 4 / 300**0.5


def test_crops_are_of_every_size_allowed_and_within_the_mask():
    y, x = np.mgrid[:SIZE, :SIZE]
    rows = augmented(np.uint8(y % 2), 200, mask_crop=0.5, **NOTHING)
    # A cut of n rows of a pattern that changes at each shows n - 1 changes, or one fewer if the last row is missed.
    changes = (rows[:, 1:, 0] != rows[:, :-1, 0]).sum(axis=1) + 1
    assert changes.min() == 16 and changes.max() == SIZE
    ends = np.ones((SIZE, SIZE), np.uint8)
    ends[0], ends[-1] = 0, 0
    found = augmented(ends, 200, mask_crop=0.5, **NOTHING)
    assert (found[:, 0, 0] == 0).any() and (found[:, -1, 0] == 0).any() and (found[:, :, 0] == 1).all(axis=1).any()


def test_masks_are_decoded_as_they_are_stored():
    for index in range(3):
        encoded, draws, config = encode_mask(stored(index)), [0.9] * examples.MASK_DRAWS, DataConfig(**NOTHING)
        np.testing.assert_array_equal(examples.make_mask(encoded, draws, SIZE, config), stored(index), strict=True)
        with pytest.raises(ValueError, match="expected 66 x 66. Received 33 x 33"):
            examples.make_mask(encoded, draws, SIZE * 2, config)


def test_everything_together_is_binary_and_changes_the_ratio():
    ratios = set()
    for index in range(5):
        found = augmented(stored(index), 20, mask_dilate=4, mask_shift=0.3, mask_crop=0.6)
        ratios |= {np.count_nonzero(mask == 0) / mask.size for mask in found}
    assert len(ratios) > 60


@pytest.mark.parametrize(
    ("field", "value"),
    [("mask_dilate", -1), ("mask_shift", 1.0), ("mask_shift", -0.1), ("mask_crop", 0.0), ("mask_crop", 1.1)]
    + [("streams", -1), ("streams", 4097), ("cache_gb", 0.0), ("cache_gb", float("nan"))],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"DataConfig\n{field}\n  Input should be .*input_value={value}"):
        DataConfig(**{field: value})
