"""Crops against NumPy: where they lie, how large they are, and that their pixels are the image's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import DataConfig
from trainer.data import examples
from trainer.images.rgb import encode_jpeg

COUNT = 300


def record_of(pixels):
    encoded = encode_jpeg(np.ascontiguousarray(pixels), quality=100)
    return {"image/encoded": encoded, "image/height": np.int64(pixels.shape[0]), "image/width": pixels.shape[1]}


def crops_of(pixels, size, config, count=COUNT):
    """Crops [count, size, size, 3] in [0, 1], each with draws of its own."""
    record = list(record_of(pixels).values())
    draws = [examples.draw_numbers(7, number)[:4].tolist() for number in range(count)]
    found = np.stack([examples.make_target(*record, numbers, size, config) for numbers in draws])
    assert found.dtype == np.uint8 and found.shape == (count, size, size, 3)
    return found / 255


def test_crops_are_parts_of_the_image_all_over_it():
    height, width, size = 64, 80, 32
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([3 * x, 3 * y, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    decoded = tf.io.decode_jpeg(record_of(pixels)["image/encoded"]).numpy() / 255
    places = []
    # Half of the shorter side is the size asked for: nothing is resampled.
    for crop in crops_of(pixels, size, DataConfig(crop_scale=(0.5, 0.5))):
        mirrored = bool(crop[:, 0, 0].mean() > crop[:, -1, 0].mean())
        left, top = (int(np.rint(crop[..., channel].mean() * 255 / 3 - 15.5)) for channel in (0, 1))
        expected = decoded[top : top + size, left : left + size]
        # One pixel further is 3 of 255; the decoder differs by 1 or 2 at the edge of what it was asked for.
        assert np.abs((crop[:, ::-1] if mirrored else crop) - expected).max() * 255 < 2.5
        places.append((top, left, mirrored))
    top, left, mirrored = np.array(places).T
    # Uniform over 0 .. 32 and 0 .. 48, each with the other and with the mirroring: 4 standard errors.
    assert (top.min(), top.max(), left.min(), left.max()) == (0, height - size, 0, width - size)
    assert abs(top.mean() - 16) < 4 * 9.5 / COUNT**0.5 and abs(left.mean() - 24) < 4 * 14.1 / COUNT**0.5
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / COUNT**0.5
    assert np.abs(np.corrcoef([top, left, mirrored]) - np.eye(3)).max() < 4 / COUNT**0.5


def position_of(crop):
    """(left, width, top, height, mirrored) of a crop, in source pixels, read off a picture with R = x and G = y."""
    size = crop.shape[0]
    inner = np.arange(3, size - 3)  # at the edges resampling repeats pixels
    found = []
    for channel, axis in ((0, 0), (1, 1)):
        line = crop[3:-3, 3:-3, channel].mean(axis=axis) * 255
        step, first = np.polyfit(inner, line, 1)
        assert np.abs(line - first - step * inner).max() < 1.5
        # Pixel i covers [i, i + 1): its center is at i + 0.5 in both pictures.
        begin, end = first + 0.5 - step / 2, first + 0.5 - step / 2 + step * size
        found += [min(begin, end), abs(end - begin)]
    return (*found, step_is_negative(crop))


def step_is_negative(crop):
    return crop[:, -4, 0].mean() < crop[:, 3, 0].mean()


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (100, 100)])
@pytest.mark.parametrize("size", [24, 160])  # smaller and larger than what is cropped
def test_crops_are_squares_within_the_image_of_every_size_allowed(height, width, size):
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)
    crops = crops_of(gradient, size, DataConfig(crop_scale=(0.5, 1.0)), count=120)
    left, width_of, top, height_of, mirrored = np.array([position_of(crop) for crop in crops]).T
    shorter, slack = min(height, width), 2.0  # a pixel is one level of 255, and JPEG is about one off
    np.testing.assert_allclose(width_of, height_of, atol=slack)
    assert left.min() > -slack and (left + width_of).max() < width + slack
    assert top.min() > -slack and (top + height_of).max() < height + slack
    assert width_of.min() > 0.5 * shorter - slack and width_of.max() < shorter + slack
    assert width_of.min() < 0.55 * shorter and width_of.max() > 0.95 * shorter
    assert abs(width_of.mean() / shorter - 0.75) < 0.06
    assert 0.3 < mirrored.mean() < 0.7
    assert abs(np.corrcoef(width_of, mirrored)[0, 1]) < 4 / len(crops) ** 0.5


def test_without_flip_nothing_is_mirrored():
    ramp = np.broadcast_to(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], (60, 80, 3))
    crops = crops_of(ramp, 16, DataConfig(flip=False), count=50)
    assert not any(step_is_negative(crop) for crop in crops)


def test_smaller_pictures_are_averaged():
    x = np.arange(64)
    stripes = np.where((x % 4 == 1) | (x % 4 == 2), 255, 0).astype(np.uint8)
    pixels = np.broadcast_to(stripes[None, :, None], (64, 64, 3))
    # Taking every fourth column with its neighbor would see white alone.
    crops = crops_of(pixels, 16, DataConfig(crop_scale=(1.0, 1.0)), count=2)
    np.testing.assert_allclose(crops[:, :, 2:-2], 0.5, atol=0.06)


@pytest.mark.parametrize("side", [12, 16, 23, 31])
def test_sizes_between_are_interpolated(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    (crop,) = crops_of(pixels, 16, DataConfig(crop_scale=(1.0, 1.0), flip=False), count=1)
    decoded = tf.io.decode_jpeg(record_of(pixels)["image/encoded"]).numpy()
    np.testing.assert_allclose(
        crop * 255, interpolate(interpolate(decoded, 16).swapaxes(0, 1), 16).swapaxes(0, 1), atol=1
    )


def interpolate(pixels, size):
    """Rows between rows, pixel centers at 0.5, 1.5, ... in both pictures."""
    place = ((np.arange(size) + 0.5) * len(pixels) / size - 0.5).clip(0, len(pixels) - 1)
    above = np.floor(place).astype(int)
    below, share = np.minimum(above + 1, len(pixels) - 1), (place - above)[:, None, None]
    return pixels[above] * (1 - share) + pixels[below] * share


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (7, 5)])
def test_the_smallest_images_have_a_crop(shape):
    for level in (0, 255):
        crops = crops_of(np.full((*shape, 3), level, np.uint8), 16, DataConfig(crop_scale=(0.01, 1.0)), count=20)
        np.testing.assert_array_equal(crops, np.full_like(crops, level / 255))
