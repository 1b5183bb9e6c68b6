"""PartialConv2D against the paper's equation in four loops, in float64 and with full multi-channel masks."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.layers import ApplyMask, DoubleSize, PartialConv2D


def pconv_oracle(branches, kernel, bias, strides, dilation):
    """Equations 1 and 2 of the paper for one image at a time, window by window and tap by tap."""
    x = np.concatenate([x for x, _ in branches], axis=-1).astype("float64")
    m = np.concatenate([np.repeat(m, x.shape[-1], axis=-1) for x, m in branches], axis=-1).astype("float64")
    (kh, kw, channels, filters), kernel = kernel.shape, kernel.astype("float64")
    batch, height, width, _ = x.shape
    top, left = dilation[0] * (kh - 1) // 2, dilation[1] * (kw - 1) // 2
    rows, columns = -(-height // strides[0]), -(-width // strides[1])
    out, updated = np.zeros((batch, rows, columns, filters)), np.zeros((batch, rows, columns, 1))
    for n, i, j in itertools.product(range(batch), range(rows), range(columns)):
        total, product = 0.0, np.zeros(filters)
        for a, b in itertools.product(range(kh), range(kw)):
            y, z = i * strides[0] - top + a * dilation[0], j * strides[1] - left + b * dilation[1]
            if 0 <= y < height and 0 <= z < width:
                total += m[n, y, z].sum()
                product += np.where(m[n, y, z] == 1, x[n, y, z], 0) @ kernel[a, b]
        if total > 0:
            out[n, i, j] = product * (kh * kw * channels) / total + bias
            updated[n, i, j] = 1
    return out, updated


def draw_branches(rng, channels, height, width, batch=2):
    """The first image has a hole of its own size in each branch among scattered ones; the last is all valid."""
    branches = []
    for c in channels:
        mask = (rng.random((batch, height, width, 1)) > 0.4).astype("float32")
        mask[0, : height - 1, : width // 2 + 1] = 0
        mask[-1] = 1
        branches.append((rng.normal(size=(batch, height, width, c)).astype("float32"), mask))
    return branches


def run_both(branches, filters, kernel_size, rng, **options):
    layer = PartialConv2D(filters, kernel_size, bias_initializer="random_normal", **options)
    out, updated = layer(branches[0] if len(branches) == 1 else branches)
    bias = layer.bias.numpy() if layer.use_bias else 0.0
    expected = pconv_oracle(branches, layer.kernel.numpy(), bias, layer.strides, layer.dilation_rate)
    return (out.numpy(), updated.numpy()), expected


@pytest.mark.parametrize("channels", [(3,), (4, 3)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [(8, 11), (7, 6)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_agrees_with_the_four_loop_oracle(kernel_size, size, strides, channels):
    rng = np.random.default_rng(0)
    (out, updated), (expected, expected_mask) = run_both(
        draw_branches(rng, channels, *size), 5, kernel_size, rng, strides=strides
    )
    np.testing.assert_array_equal(updated, expected_mask)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernel_size, options",
    [
        (3, {"dilation_rate": 2}),
        (5, {"dilation_rate": (1, 2)}),
        (2, {}),
        (4, {"strides": 2}),
        ((3, 5), {"strides": (2, 1)}),
        (3, {"strides": 3, "use_bias": False}),
    ],
)
def test_other_windows_agree_with_the_oracle(kernel_size, options):
    rng = np.random.default_rng(1)
    (out, updated), (expected, expected_mask) = run_both(
        draw_branches(rng, (2, 3), 9, 8), 4, kernel_size, rng, **options
    )
    np.testing.assert_array_equal(updated, expected_mask)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_float64_agrees_to_float64():
    rng = np.random.default_rng(2)
    (out, _), (expected, _) = run_both(draw_branches(rng, (2, 3), 6, 7), 4, 3, rng, strides=2, dtype="float64")
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_known_values_by_hand():
    """A 3x3 window of ones over ones is 9 Cin wherever one pixel is valid: the ratio undoes holes and borders."""
    mask = np.zeros((1, 5, 5, 1), "float32")
    mask[0, 0, 0] = 1
    layer = PartialConv2D(1, 3, kernel_initializer="ones", bias_initializer="ones")
    out, updated = layer((np.ones((1, 5, 5, 2), "float32"), mask))
    expected = np.zeros((5, 5))
    expected[:2, :2] = 9 * 2 + 1
    np.testing.assert_array_equal(out[0, ..., 0], expected)
    np.testing.assert_array_equal(updated[0, ..., 0], expected > 0)


def test_bias_is_absent_from_holes():
    layer = PartialConv2D(3, 3, bias_initializer="ones")
    out, updated = layer((np.ones((1, 4, 4, 2), "float32"), np.zeros((1, 4, 4, 1), "float32")))
    assert not out.numpy().any() and not updated.numpy().any()


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("garbage", [1e30, -1e30, np.inf, np.nan])
def test_what_lies_under_holes_changes_no_bit(garbage, strides):
    rng = np.random.default_rng(3)
    branches = draw_branches(rng, (3, 2), 8, 9)
    dirty = [(np.where(m == 1, x, np.float32(garbage)), m) for x, m in branches]
    layer = PartialConv2D(6, 3, strides=strides, bias_initializer="ones")
    results = []
    for given in (branches, dirty):
        features = [tf.constant(x) for x, _ in given]
        with tf.GradientTape() as tape:
            tape.watch(features)
            out, updated = layer([(x, m) for x, (_, m) in zip(features, given, strict=True)])
            loss = tf.reduce_sum(tf.square(out))
        results.append([out, updated, *tape.gradient(loss, [layer.kernel.value, layer.bias.value, *features])])
    for clean, other in zip(*results, strict=True):
        assert clean.numpy().tobytes() == other.numpy().tobytes()
    for gradient, (_, mask) in zip(results[1][-2:], branches, strict=True):
        assert not gradient.numpy()[np.broadcast_to(mask == 0, gradient.shape)].any()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("valid", ["none", "one", "half", "all"])
def test_mixed_precision_stays_finite(policy, valid):
    rng = np.random.default_rng(4)
    channels = (1, 1400)
    share = {"none": 0, "one": 0, "half": 0.5, "all": 1}[valid]
    masks = [(rng.random((1, 8, 8, 1)) < share).astype("float32") for _ in channels]
    if valid == "one":
        masks[0][0, 3, 4] = 1  # a ratio of 49 * 1401 / 1, above float16's 65504
    features = [tf.constant(rng.normal(size=(1, 8, 8, c)).astype("float32")) for c in channels]
    layer = PartialConv2D(2, 7, dtype=policy)
    with tf.GradientTape() as tape:
        tape.watch(features)
        out, updated = layer(list(zip(features, masks, strict=True)))
        loss = tf.reduce_mean(tf.cast(out, "float32"))
    gradients = tape.gradient(loss, [layer.kernel.value, layer.bias.value, *features])
    assert out.dtype == layer.compute_dtype and updated.dtype == "float32" and layer.kernel.dtype == "float32"
    assert all(np.isfinite(tf.cast(x, "float32")).all() for x in (out, *gradients))
    branches = [(x.numpy(), m) for x, m in zip(features, masks, strict=True)]
    expected, expected_mask = pconv_oracle(branches, layer.kernel.numpy(), layer.bias.numpy(), (1, 1), (1, 1))
    np.testing.assert_array_equal(updated, expected_mask)
    scale = np.abs(expected).max() + 1e-6
    assert np.abs(tf.cast(out, "float32") - expected).max() < 0.02 * scale


def test_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(5)
    branches = draw_branches(rng, (2, 1), 4, 5)
    layer = PartialConv2D(2, 3, strides=2, bias_initializer="random_normal", dtype="float64")
    features = [tf.Variable(x.astype("float64")) for x, _ in branches]
    masks = [m for _, m in branches]
    layer([(x.value(), m) for x, m in zip(features, masks, strict=True)])
    weights = rng.normal(size=(2, 2, 3, 2))

    def loss():
        out, _ = layer([(x.value(), m) for x, m in zip(features, masks, strict=True)])
        return tf.reduce_sum(tf.sin(out) * weights)

    variables = [layer.kernel.value, layer.bias.value, *features]
    with tf.GradientTape() as tape:
        value = loss()
    for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
        start, numeric = variable.numpy(), np.zeros(variable.shape)
        for index in np.ndindex(*start.shape):
            step = np.zeros_like(start)
            step[index] = 1e-6
            variable.assign(start + step)
            upper = loss()
            variable.assign(start - step)
            numeric[index] = (upper - loss()) / 2e-6
        variable.assign(start)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_no_gradient_reaches_the_mask():
    x, mask = tf.ones((1, 4, 4, 1)), tf.ones((1, 4, 4, 1))
    with tf.GradientTape() as tape:
        tape.watch(mask)
        out, updated = PartialConv2D(1, 3)((x, mask))
        loss = tf.reduce_sum(out) + tf.reduce_sum(updated)
    assert tape.gradient(loss, mask) is None


def test_masks_of_any_dtype_give_the_same_bits():
    rng = np.random.default_rng(6)
    ((x, mask),) = draw_branches(rng, (3,), 6, 6)
    layer = PartialConv2D(2, 3)
    expected = layer((x, mask))[0].numpy()
    for dtype in ("uint8", "bool", "int64", "float64"):
        np.testing.assert_array_equal(layer((x, mask.astype(dtype)))[0], expected)


def test_inputs_masked_skips_only_the_masking():
    rng = np.random.default_rng(7)
    ((x, mask),) = draw_branches(rng, (3,), 6, 6)
    layer, trusting = PartialConv2D(2, 3), PartialConv2D(2, 3, inputs_masked=True)
    expected = layer((x, mask))[0]
    trusting.build(((2, 6, 6, 3), (2, 6, 6, 1)))
    trusting.set_weights(layer.get_weights())
    clean = ApplyMask()((np.where(mask == 1, x, np.nan), mask))
    np.testing.assert_array_equal(clean, x * mask)
    np.testing.assert_array_equal(trusting((clean, mask))[0], expected)
    assert np.abs(trusting((x, mask))[0] - expected).max() > 0.01


def test_symbolic_shapes_and_dtypes_are_those_of_real_calls():
    shapes = [((None, None, 9, 4), (None, None, 9, 1)), ((None, None, 9, 2), (None, None, 9, 1))]
    layer = PartialConv2D(5, 3, strides=2, dtype="mixed_bfloat16")
    assert layer.compute_output_shape(shapes) == ((None, None, 5, 5), (None, None, 5, 1))
    assert layer.compute_output_shape([[list(s) for s in shapes[0]]]) == ((None, None, 5, 5), (None, None, 5, 1))
    inputs = [tuple(keras.Input(shape[1:]) for shape in pair) for pair in shapes]
    symbolic = layer(inputs)
    real = layer([tuple(np.ones((2, 7, 9, shape[3]), "float32") for shape in pair) for pair in shapes])
    assert [x.shape for x in symbolic] == [(None, None, 5, 5), (None, None, 5, 1)]
    assert [tuple(x.shape) for x in real] == [(2, 4, 5, 5), (2, 4, 5, 1)]
    assert [x.dtype for x in symbolic] == ["bfloat16", "float32"] == [x.dtype.name for x in real]


def test_saved_model_and_config_come_back_the_same(tmp_path):
    rng = np.random.default_rng(8)
    branches = draw_branches(rng, (3, 2), 8, 8)
    inputs = [tuple(keras.Input(array.shape[1:]) for array in pair) for pair in branches]
    options = dict(strides=(1, 1), dilation_rate=2, kernel_initializer=keras.initializers.HeNormal(seed=1))
    x, m = PartialConv2D(4, (3, 5), **options, kernel_regularizer=keras.regularizers.L2(0.5), name="pair")(inputs)
    y, m = PartialConv2D(2, 3, strides=2, bias_regularizer="l1", bias_initializer="ones")((x, m))
    model = keras.Model(inputs, [y, m])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    for before, after in zip(model(branches), loaded(branches), strict=True):
        np.testing.assert_array_equal(before, after)
    assert loaded.get_layer("pair").get_config() == model.get_layer("pair").get_config()
    kernel = model.get_layer("pair").kernel.numpy()
    np.testing.assert_allclose(sum(loaded.losses), 0.5 * np.square(kernel).sum() + 0.01 * 2, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"filters": 0}, "filters"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"strides": 1.5}, "strides"),
        ({"strides": 2, "dilation_rate": 2}, "dilation_rate"),
    ],
)
def test_wrong_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=rf"expected .*{text}.*\. Received"):
        PartialConv2D(**{"filters": 4, "kernel_size": 3, **arguments})


@pytest.mark.parametrize(
    "shapes",
    [
        [((1, 8, 8, 3), (1, 8, 8, 3))],
        [((1, 8, 8, 3), (1, 8, 7, 1))],
        [((1, 8, 8, 3), (1, 8, 8, 1)), ((1, 4, 8, 3), (1, 4, 8, 1))],
        [((8, 8, 3), (8, 8, 1))],
        [((1, 8, 8, 3),)],
        [],
    ],
)
def test_inputs_that_are_not_branches_are_refused(shapes):
    with pytest.raises(ValueError, match="expected .* Received"):
        PartialConv2D(4, 3)([tuple(np.ones(shape, "float32") for shape in pair) for pair in shapes])


def test_a_built_layer_refuses_other_channel_counts():
    layer = PartialConv2D(4, 3)
    mask = np.ones((1, 8, 8, 1), "float32")
    layer((np.ones((1, 8, 8, 2), "float32"), mask))
    with pytest.raises(ValueError, match="adding up to 2"):
        layer((np.ones((1, 8, 8, 4), "float32"), mask))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twice_the_size_and_the_gradient_of_it(dtype, training):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (2, 3, 5, 4)), rng.integers(-9, 9, (2, 6, 10, 4))  # bfloat16 holds their sums
    layer = DoubleSize(dtype=dtype)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 4), dtype)] * 2)
    def compute(x, w):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
        return y, tape.gradient(y, x, output_gradients=w)

    y, gradient = (np.asarray(tf.cast(a, "float32")) for a in compute(tf.cast(x, dtype), tf.cast(w, dtype)))
    np.testing.assert_array_equal(y, np.kron(x, np.ones((1, 2, 2, 1))))
    np.testing.assert_array_equal(gradient, w.reshape(2, 3, 2, 5, 2, 4).sum((2, 4)))
    assert layer.compute_output_shape((None, 3, None, 4)) == (None, 6, None, 4)
