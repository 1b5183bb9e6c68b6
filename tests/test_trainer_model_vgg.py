"""build_features against VGG-16 in Keras's convention, computed tap by tap in float64."""

from __future__ import annotations

import numpy as np

from trainer.model.vgg import BUNDLED, build_features

BLOCKS = [["block1_conv1", "block1_conv2"], ["block2_conv1", "block2_conv2"]]
BLOCKS += [["block3_conv1", "block3_conv2", "block3_conv3"]]


def vgg_oracle(rgb):
    """Keras's preprocessing (BGR, 0..255, minus the mean), then the three blocks; zero padding after it."""
    weights = np.load(BUNDLED)
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
    """Smooth colors that differ by channel: noise alone would hide a swap of channels from deep layers."""
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


def test_nothing_is_trainable():
    model = build_features()
    assert not model.trainable_variables and len(model.variables) == 14


def test_mixed_precision_follows_float32():
    image = draw_image()
    for x, y in zip(build_features(dtype="mixed_bfloat16")(image), build_features()(image), strict=True):
        assert x.dtype == "bfloat16" and y.dtype == "float32"
        assert np.abs(np.asarray(x, "float32") - y).max() < 0.03 * np.abs(y).max()


def test_a_given_weights_file_is_the_one_used(tmp_path):
    arrays = dict(np.load(BUNDLED))
    arrays["block3_conv3/kernel"] = 0 * arrays["block3_conv3/kernel"]
    arrays["block3_conv3/bias"] = np.arange(256, dtype="float32")
    np.savez(tmp_path / "weights.npz", **arrays)
    pool3 = build_features(f"keras:{tmp_path}/weights.npz")(draw_image())[2]
    np.testing.assert_allclose(pool3[0, 0, 0], np.arange(256) / 57.375, rtol=1e-6)
