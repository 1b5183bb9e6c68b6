"""Metrics against scikit-image, and against values known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from trainer.metrics.image_quality import compare, l1, psnr, ssim

OPTIONS = dict(channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


def draw(dtype="float64", batch=3, height=24, width=31):
    """Smooth images with noise of rising strength; holes that touch the border."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / width
    target = np.stack([0.5 + 0.4 * np.sin(9 * y), x, 0.3 + 0 * x], -1)[None].repeat(batch, 0)
    noise = rng.normal(size=target.shape) * np.array([0.01, 0.05, 0.3])[:batch, None, None, None]
    mask = np.ones((batch, height, width, 1))
    mask[:, 3:9, 20:] = mask[0, :2] = 0
    return np.clip(target + noise, 0, 1).astype(dtype), target.astype(dtype), mask


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ssim_agrees_with_scikit_image(dtype):
    output, target, mask = draw(dtype)
    pairs = list(zip(output.astype("float64"), target.astype("float64"), strict=True))
    expected = [structural_similarity(x, y, **OPTIONS) for x, y in pairs]
    np.testing.assert_allclose(ssim(output, target), expected, rtol=0, atol=1e-9)
    maps = [structural_similarity(x, y, full=True, **OPTIONS)[1] for x, y in pairs]
    expected = [full[hole[..., 0] == 0].mean() for full, hole in zip(maps, mask, strict=True)]
    np.testing.assert_allclose(ssim(output, target, mask), expected, rtol=0, atol=1e-9)


def test_psnr_agrees_with_scikit_image():
    output, target, mask = draw()
    pairs = list(zip(output, target, mask[..., 0] == 0, strict=True))
    expected = [peak_signal_noise_ratio(y, x, data_range=1) for x, y, _ in pairs]
    np.testing.assert_allclose(psnr(output, target), expected, rtol=1e-9)
    expected = [peak_signal_noise_ratio(y[hole], x[hole], data_range=1) for x, y, hole in pairs]
    np.testing.assert_allclose(psnr(output, target, mask), expected, rtol=1e-9)


def test_values_by_hand():
    target = np.zeros((2, 12, 12, 3), "float32")
    mask = np.ones((2, 12, 12, 1), "uint8")
    mask[:, 4:10, 4:8] = 0  # 24 of 144 pixels
    output = np.where(mask == 0, np.float32(0.1), target)  # an error of 0.1 in holes: MSE 0.01 is 20 dB
    output[1, ..., 1:] = 0  # of one channel of three: a third of it
    np.testing.assert_allclose(psnr(output, target, mask), [20, 20 + 10 * np.log10(3)], rtol=1e-6)
    np.testing.assert_allclose(psnr(output, target), 10 * np.log10([600, 1800]), rtol=1e-6)
    np.testing.assert_allclose(l1(output, target, mask), [0.1, 0.1 / 3], rtol=1e-6)
    np.testing.assert_allclose(l1(output, target), [0.1 / 6, 0.1 / 18], rtol=1e-6)


def test_equal_images_and_images_without_holes():
    _, target, mask = draw("float32")
    mask[1] = 1
    assert np.all(np.isposinf(psnr(target, target)))
    np.testing.assert_allclose(ssim(target, target), 1, rtol=1e-6)
    for metric in (psnr, ssim, l1):
        assert np.isnan(metric(1 - target, target, mask)).tolist() == [False, True, False]


def test_all_at_once_are_the_same_values():
    output, target, mask = draw()
    mask[1] = 1
    found = compare(output, target, mask)
    assert list(found) == ["psnr", "psnr_holes", "ssim", "ssim_holes", "l1", "l1_holes"]
    for metric in (psnr, ssim, l1):
        np.testing.assert_array_equal(found[metric.__name__], metric(output, target))
        np.testing.assert_array_equal(found[f"{metric.__name__}_holes"], metric(output, target, mask))


def test_dtypes_do_not_matter():
    output, target, _ = draw("float16")
    for metric in (psnr, ssim, l1):
        expected = metric(output.astype("float64"), target.astype("float64"))
        np.testing.assert_array_equal(metric(output, target.astype("float32")), expected)


@pytest.mark.parametrize("metric", [psnr, ssim, l1])
def test_wrong_inputs_are_refused(metric):
    image, mask = np.zeros((1, 12, 12, 3), "float32"), np.zeros((1, 12, 12, 1), "float32")
    for arguments in ((image, image[:, :11]), (image[0], image[0]), (image, image, image), (image, image, mask[0])):
        with pytest.raises(ValueError, match="metrics: expected .* Received"):
            metric(*arguments)
    with pytest.raises(ValueError, match="expected floats.*Received uint8"):
        metric(image.astype("uint8"), image)
    with pytest.raises(ValueError, match="ssim: expected .* 11 pixels or more. Received 10 x 12"):
        ssim(image[:, :10], image[:, :10])
