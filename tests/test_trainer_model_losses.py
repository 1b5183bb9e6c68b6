"""The loss terms against slow loops over the paper's equations, and against values known by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import LossConfig
from trainer.model import losses
from trainer.presets import PRESETS

SHAPE = (2, 7, 6, 3)


def draw(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    mask = (rng.random((*shape[:3], 1)) > 0.3).astype("float32")
    return rng.random(shape).astype("float32"), rng.random(shape).astype("float32"), mask


def fake_features(x):
    """Two layers of different sizes and channel counts, in NumPy or TensorFlow alike."""
    stack = tf.concat if isinstance(x, tf.Tensor) else np.concatenate
    return [3 * x * x, stack([x[:, ::2, ::2], x[:, 1::2, ::2, :1][:, :1] + 2 * x[:, ::2, ::2]], -1)]


def gram_oracle(features):
    height, width, channels = features.shape
    gram = np.zeros((channels, channels))
    for i, j, y, x in itertools.product(range(channels), range(channels), range(height), range(width)):
        gram[i, j] += float(features[y, x, i]) * float(features[y, x, j]) / (channels * height * width)
    return gram


def style_oracle(features, target_features):
    total = 0.0
    for x, y in zip(features, target_features, strict=True):
        for a, b in zip(x, y, strict=True):
            total += np.abs(gram_oracle(a) - gram_oracle(b)).sum() / a.shape[-1] ** 2 / len(x)
    return total


def total_variation_oracle(composite, mask):
    batch, height, width, _ = composite.shape
    total = 0.0

    def in_region(n, y, x):
        near = mask[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        return (near == 0).any()

    for n, y, x, (dy, dx) in itertools.product(range(batch), range(height), range(width), ((0, 1), (1, 0))):
        if y + dy < height and x + dx < width and in_region(n, y, x) and in_region(n, y + dy, x + dx):
            total += np.abs(composite[n, y + dy, x + dx].astype("float64") - composite[n, y, x]).sum()
    return total / composite.size


def test_hole_and_valid_divide_by_the_whole_image():
    output, target, mask = draw()
    distance, whole = np.abs(output.astype("float64") - target), np.prod(SHAPE)
    np.testing.assert_allclose(losses.hole_loss(output, target, mask), (distance * (mask == 0)).sum() / whole, 1e-5)
    np.testing.assert_allclose(losses.valid_loss(output, target, mask), (distance * (mask == 1)).sum() / whole, 1e-5)
    # A hole of 6 of 42 pixels, 0.7 off everywhere in one channel of three: 0.7 * 6 / 42 / 3.
    mask = np.ones((1, 7, 6, 1), "float32")
    mask[0, 2] = 0
    target = np.zeros((1, 7, 6, 3), "float32")
    output = target + np.float32([0.7, 0, 0])
    np.testing.assert_allclose(losses.hole_loss(output, target, mask), 0.7 / 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(losses.valid_loss(output, target, mask), 0.7 * 6 / 7 / 3, rtol=1e-6)


def test_images_count_the_same_whatever_their_holes():
    output, target, mask = draw(4, (3, 7, 6, 3))
    mask[2] = 1  # no holes
    off = [output[n][mask[n, ..., 0] == 0].astype("float64") - target[n][mask[n, ..., 0] == 0] for n in (0, 1)]
    expected = sum(np.abs(x).mean() for x in off) / 3
    np.testing.assert_allclose(losses.hole_mean_loss(output, target, mask), expected, rtol=1e-5)
    expected = (sum(np.log10(np.square(x).mean() + 1e-5) for x in off) - 5) / 3
    np.testing.assert_allclose(losses.hole_log_loss(output, target, mask), expected, rtol=1e-5)
    # 0.1 off in holes of one pixel and of all: a mean of 0.1, and 20 dB.
    target, mask = np.full((2, 7, 6, 3), 0.5, "float32"), np.ones((2, 7, 6, 1), "float32")
    mask[0, 3, 3], mask[1] = 0, 0
    np.testing.assert_allclose(losses.hole_mean_loss(target + 0.1, target, mask), 0.1, rtol=1e-5)
    np.testing.assert_allclose(losses.hole_log_loss(target + 0.1, target, mask), -2, rtol=1e-3)


@pytest.mark.parametrize("name", ["hole_mean", "hole_log"])
def test_gradients_of_terms_by_holes_are_finite(name):
    """Of images without holes, too, and of holes that are filled exactly."""
    _, target, mask = draw(5)
    mask[1] = 1
    config = LossConfig(**{**dict.fromkeys(LossConfig().weights, 0.0), name: 1.0})
    output = tf.constant(target)
    with tf.GradientTape() as tape:
        tape.watch(output)
        total, _ = losses.total_loss(output, target, mask, None, config)
    assert np.isfinite(total) and np.all(np.isfinite(tape.gradient(total, output)))


def test_perceptual_is_a_mean_per_layer():
    features, target_features = (fake_features(x) for x in draw()[:2])
    expected = sum(np.abs(a - b).sum() / a.size for a, b in zip(features, target_features, strict=True))
    np.testing.assert_allclose(losses.perceptual_loss(features, target_features), expected, rtol=1e-5)


def test_gram_and_style_agree_with_loops():
    features, target_features = (fake_features(x) for x in draw()[:2])
    gram = losses.gram_matrix(features[1])
    np.testing.assert_allclose(gram, [gram_oracle(x) for x in features[1]], rtol=1e-5)
    expected = style_oracle(features, target_features)
    np.testing.assert_allclose(losses.style_loss(features, target_features), expected, rtol=1e-5)
    # By hand: all features 2, three channels: every entry is 4 * H * W / (3 * H * W).
    np.testing.assert_allclose(losses.gram_matrix(np.full((1, 5, 4, 3), 2, "float32")), np.full((1, 3, 3), 4 / 3), 1e-6)


def test_total_variation_counts_pairs_inside_the_dilated_hole():
    output, _, _ = draw()
    for seed in range(3):
        mask = (np.random.default_rng(seed).random((2, 7, 6, 1)) > 0.12).astype("float32")
        expected = total_variation_oracle(output, mask)
        assert expected > 0
        np.testing.assert_allclose(losses.total_variation_loss(output, mask), expected, rtol=1e-5)


def test_total_variation_by_hand():
    mask = np.ones((1, 8, 8, 1), "float32")
    mask[0, 3, 3] = 0  # R is the 3 x 3 block around it
    image = np.zeros((1, 8, 8, 1), "float32")
    image[0, 2, 2] = 1  # corner of R: 2 of its 4 neighbors are in R, pairs leaving R do not count
    np.testing.assert_allclose(losses.total_variation_loss(image, mask), 2 / 64, rtol=1e-6)
    assert losses.total_variation_loss(np.full((1, 8, 8, 1), 0.7, "float32"), mask) == 0
    assert losses.total_variation_loss(image, np.ones_like(mask)) == 0


def test_total_agrees_with_the_paper():
    output, target, mask = draw(1)
    total, terms = losses.total_loss(tf.constant(output), target, mask, fake_features, LossConfig())
    composite = np.where(mask == 1, target, output)
    on_output, on_composite, on_target = (fake_features(x) for x in (output, composite, target))
    distances = [np.abs(a - b).mean() for x in (on_output, on_composite) for a, b in zip(x, on_target, strict=True)]
    expected = {
        "valid": (mask * np.abs(output - target)).mean(),
        "hole": ((1 - mask) * np.abs(output - target)).mean(),
        "perceptual": sum(distances),
        "style_output": style_oracle(on_output, on_target),
        "style_composite": style_oracle(on_composite, on_target),
        "total_variation": total_variation_oracle(composite, mask),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    paper = {"valid": 1, "hole": 6, "perceptual": 0.05, "total_variation": 0.1}
    paper |= {"style_output": 120, "style_composite": 120}
    np.testing.assert_allclose(total, sum(paper[name] * value for name, value in expected.items()), rtol=1e-5)


def test_terms_of_weight_zero_are_not_computed():
    output, target, mask = draw(2)
    config = LossConfig(perceptual=0, style_output=0, style_composite=0, total_variation=0)
    total, terms = losses.total_loss(output, target, mask, None, config)
    assert terms.keys() == {"valid", "hole"}
    np.testing.assert_allclose(total, terms["valid"] + 6 * terms["hole"], rtol=1e-6)
    with pytest.raises(ValueError, match="features=None"):
        losses.total_loss(output, target, mask, None, LossConfig())


def test_every_weight_of_the_config_has_its_term():
    assert losses.TERMS.keys() == LossConfig().weights.keys()


def test_needs_features():
    without = {"perceptual": 0.0, "style_output": 0.0, "style_composite": 0.0}
    assert losses.needs_features(PRESETS["paper"].loss) and not losses.needs_features(PRESETS["demo"].loss)
    assert not losses.needs_features(LossConfig(**without))
    assert all(losses.needs_features(LossConfig(**{**without, name: 0.1})) for name in without)


@pytest.mark.parametrize(
    "weights, batches",
    [({}, [2, 4]), ({"perceptual": 0, "style_output": 0}, [2, 2]), ({"perceptual": 0, "style_composite": 0}, [2, 2])],
)
def test_output_and_composite_share_one_call(weights, batches):
    output, target, mask = draw(3)
    seen = []

    def features(x):
        seen.append(len(x))
        return fake_features(x)

    losses.total_loss(tf.constant(output), tf.constant(target), mask, features, LossConfig(**weights))
    assert seen == batches


def test_gradient_reaches_the_output_alone():
    output, target, mask = (tf.constant(x) for x in draw(4))
    config = LossConfig(valid=0, hole=0, total_variation=0)
    with tf.GradientTape() as tape:
        tape.watch([output, target])
        # With the target's own pixels kept out of the composite, only its features could pass a gradient.
        total, _ = losses.total_loss(output, target, tf.zeros_like(mask), fake_features, config)
    on_output, on_target = tape.gradient(total, [output, target])
    assert np.abs(on_output).max() > 0 and not (on_target is not None and np.any(on_target))


def test_composite_takes_holes_from_the_output_bit_for_bit():
    output, target, mask = draw(5)
    composite = losses.composite_image(tf.cast(output, "bfloat16"), target, mask).numpy()
    valid = np.broadcast_to(mask == 1, SHAPE)
    np.testing.assert_array_equal(composite[valid], target[valid])
    np.testing.assert_array_equal(composite[~valid], tf.cast(tf.cast(output, "bfloat16"), "float32")[~valid])


def test_low_precision_inputs_are_computed_in_float32():
    output, target, mask = draw(6, (2, 64, 64, 3))
    low = tf.cast(output, "bfloat16")
    total, terms = losses.total_loss(low, target, mask, fake_features, LossConfig())
    exact, exact_terms = losses.total_loss(tf.cast(low, "float32"), target, mask, fake_features, LossConfig())
    assert total.dtype == "float32" and total == exact
    assert all(terms[name] == exact_terms[name] for name in exact_terms)
    features = [tf.cast(x, "bfloat16") for x in fake_features(low)]
    upcast = [tf.cast(x, "float32") for x in features]
    assert losses.style_loss(features, upcast) == 0 and losses.perceptual_loss(features, upcast) == 0


def test_sizes_unknown_at_tracing_give_the_same_loss():
    output, target, mask = draw(7)
    images, masks = tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, None, None, 1))
    step = tf.function(lambda *x: losses.total_loss(*x, fake_features, LossConfig())[0], [images, images, masks])
    expected, _ = losses.total_loss(tf.constant(output), target, mask, fake_features, LossConfig())
    np.testing.assert_allclose(step(output, target, mask), expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"mask": (2, 7, 6, 3)}, {"output": (2, 7, 6, 1)}, {"target": (2, 7, 5, 3)}])
def test_shapes_that_would_broadcast_are_refused(wrong):
    shapes = {"output": SHAPE, "target": SHAPE, "mask": (2, 7, 6, 1), **wrong}
    with pytest.raises(ValueError, match="total_loss: expected .* Received shapes"):
        losses.total_loss(*(np.zeros(shape, "float32") for shape in shapes.values()), fake_features, LossConfig())
