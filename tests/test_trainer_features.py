"""build_features against VGG-16 in Keras's convention, computed tap by tap in float64."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.features import BUNDLED_WEIGHTS, build_features, load_weights

BLOCKS = [["block1_conv1", "block1_conv2"], ["block2_conv1", "block2_conv2"]]
BLOCKS += [["block3_conv1", "block3_conv2", "block3_conv3"]]


def vgg_oracle(rgb):
    """Keras's preprocessing (BGR, 0..255, minus the mean), then the three blocks; zero padding after it."""
    weights = np.load(BUNDLED_WEIGHTS)
    x = rgb.astype("float64")[..., ::-1] * 255 - np.array([103.939, 116.779, 123.68])
    pools = []
    for block in BLOCKS:
        for name in block:
            kernel = weights[f"{name}/kernel"].astype("float64")
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            taps = ((i, j) for i in range(3) for j in range(3))
            x = sum(padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i, j in taps)
            x = np.maximum(x + weights[f"{name}/bias"], 0)
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * rows, : 2 * columns].reshape(len(x), rows, 2, columns, 2, -1).max((2, 4))
        pools.append(x)
    return pools


def draw_image():
    """Smooth colours that differ by channel: noise alone would hide a swap of channels from deep layers."""
    y, x = np.mgrid[:18, :16] / 18
    image = np.stack([y, 0.5 + 0.5 * np.sin(7 * x), (x * y) ** 2], axis=-1)[None]
    return (0.9 * image + 0.1 * np.random.default_rng(0).random(image.shape)).astype("float32")


def test_features_are_keras_features_over_57_375():
    image = draw_image()
    features, expected = build_features()(image), vgg_oracle(image)
    assert [x.shape for x in expected] == [(1, 9, 8, 64), (1, 4, 4, 128), (1, 2, 2, 256)]
    for x, y in zip(features, expected, strict=True):
        np.testing.assert_allclose(x, y / 57.375, rtol=1e-4, atol=1e-5 * y.max() / 57.375)


def test_channel_order_matters():
    image = draw_image()
    model = build_features()
    for x, swapped in zip(model(image), model(image[..., ::-1]), strict=True):
        assert np.abs(x - swapped).mean() > 0.05 * np.abs(x).mean()


def test_bundled_weights_are_the_published_ones():
    arrays = load_weights(BUNDLED_WEIGHTS)
    expected = [0.42947057, 0.11727387, 0.03401296]  # first values of VGG-16's first kernel as Keras publishes it
    np.testing.assert_array_equal(arrays["block1_conv1/kernel"].ravel()[:3], np.float32(expected))
    assert sum(a.size for a in arrays.values()) == 1_735_488  # VGG-16's blocks 1 to 3


def test_nothing_is_trainable():
    model = build_features()
    assert not model.trainable_variables and len(model.variables) == 14


def test_mixed_precision_follows_float32():
    image = draw_image()
    for x, y in zip(build_features(dtype="mixed_bfloat16")(image), build_features()(image), strict=True):
        assert x.dtype == "bfloat16" and y.dtype == "float32"
        assert np.abs(np.asarray(x, "float32") - y).max() < 0.03 * np.abs(y).max()


def without(arrays):
    return {name: array for name, array in arrays.items() if name != "block2_conv1/bias"}


@pytest.mark.parametrize(
    "change, text",
    [
        (without, r"missing \['block2_conv1/bias'\], unexpected \[\]"),
        (lambda a: {**without(a), "block2_conv9/bias": a["block2_conv1/bias"]}, r"unexpected \['block2_conv9/bias'\]"),
        (lambda a: {**a, "block1_conv2/kernel": a["block2_conv1/kernel"]}, r"\(3, 3, 64, 64\)\. Received .*64, 128\)"),
        (lambda a: {**a, "block3_conv3/bias": np.full(256, np.nan, "float32")}, "finite.*Received .* with NaN"),
        (lambda a: {**a, "block3_conv3/bias": np.zeros(256, "int64")}, "floats.*Received int64"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, text):
    arrays = dict(np.load(BUNDLED_WEIGHTS))
    np.savez(tmp_path / "weights.npz", **change(arrays))
    with pytest.raises(ValueError, match=text):
        build_features(tmp_path / "weights.npz")


def test_a_given_weights_file_is_the_one_used(tmp_path):
    arrays = dict(np.load(BUNDLED_WEIGHTS))
    arrays["block3_conv3/kernel"] = 0 * arrays["block3_conv3/kernel"]
    arrays["block3_conv3/bias"] = np.arange(256, dtype="float32")
    np.savez(tmp_path / "weights.npz", **arrays)
    pool3 = build_features(tmp_path / "weights.npz")(draw_image())[2]
    np.testing.assert_allclose(pool3[0, 0, 0], np.arange(256) / 57.375, rtol=1e-6)
    with pytest.raises(FileNotFoundError):
        build_features(tmp_path / "absent.npz")
