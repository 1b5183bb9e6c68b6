"""Batch normalization: one replica against NumPy, two replicas against one that has both batches."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.layers import BatchNormalization

RNG = np.random.default_rng(0)


def test_training_uses_batch_statistics_and_moves_the_moving_ones():
    x = RNG.normal(3, 2, (4, 5, 6, 3))
    layer = BatchNormalization(momentum=0.9, epsilon=1e-3, dtype="float64")
    layer.build(x.shape)
    layer.gamma.assign([1.0, 2.0, 0.5])
    layer.beta.assign([0.0, 1.0, -1.0])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(variance + 1e-3) * [1.0, 2.0, 0.5] + [0.0, 1.0, -1.0]
    np.testing.assert_allclose(np.asarray(layer(x, training=True)), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.asarray(layer.moving_mean), 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(layer.moving_variance), 0.9 + 0.1 * variance, rtol=1e-6)


@pytest.mark.parametrize("how", [{"training": False}, {"training": True, "frozen": True}])
def test_inference_and_frozen_layers_use_and_keep_the_moving_statistics(how):
    layer = BatchNormalization(epsilon=1e-3)
    layer.build((None, None, None, 2))
    layer.moving_mean.assign([1.0, 2.0])
    layer.moving_variance.assign([4.0, 9.0])
    layer.trainable = not how.get("frozen", False)
    x = RNG.normal(size=(2, 3, 3, 2)).astype("float32")
    expected = (x - [1.0, 2.0]) / np.sqrt(np.array([4.0, 9.0]) + 1e-3)
    np.testing.assert_allclose(np.asarray(layer(x, training=how["training"])), expected, rtol=1e-5, atol=1e-6)
    assert np.asarray(layer.moving_mean).tolist() == [1.0, 2.0]
    assert np.asarray(layer.moving_variance).tolist() == [4.0, 9.0]


def test_without_gamma_and_beta():
    x = RNG.normal(size=(2, 4, 4, 3)).astype("float32")
    ours = BatchNormalization(scale=False, center=False)(x, training=True)
    theirs = keras.layers.BatchNormalization(scale=False, center=False)(x, training=True)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-5)


def test_bfloat16_statistics_are_those_of_float32():
    x = (1000 + RNG.normal(size=(4, 8, 8, 2))).astype("float32")
    layer = BatchNormalization(dtype="mixed_bfloat16")
    layer(x, training=True)
    rounded = np.asarray(keras.ops.cast(keras.ops.cast(x, "bfloat16"), "float32"))
    np.testing.assert_allclose(np.asarray(layer.moving_mean), 0.01 * rounded.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("how", ["alone", "over replicas", "frozen"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_outputs_and_gradients_are_those_written_out_in_float64(dtype, how):
    """The kernels against automatic differentiation of the equation; batches of another size than the traced one."""
    layers = {name: BatchNormalization(epsilon=1e-3, dtype=name) for name in ("float64", dtype)}
    found = {}
    for name, layer in layers.items():
        layer.build((None, None, None, 3))
        layer.mean_over_replicas = (lambda statistics: statistics) if how == "over replicas" else None
        layer.trainable = how != "frozen"
        layer.gamma.assign([1.0, 2.0, 0.5])
        layer.beta.assign([0.0, 1.0, -1.0])
        layer.moving_mean.assign([2.0, 3.0, 4.0])

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), layer.compute_dtype)] * 2)
        def compute(x, w, layer=layer):
            variables = [layer.gamma.value, layer.beta.value]
            with tf.GradientTape() as tape:
                tape.watch([x, *variables])
                y = layer(x, training=True)
            return y, *tape.gradient(y, [x, *variables], output_gradients=w)

        rng = np.random.default_rng(0)
        for shape in ((1, 4, 4, 3), (4, 5, 6, 3)):
            x, w = rng.normal(3, 2, shape), rng.normal(size=shape)
            x, w = (tf.cast(tf.cast(a, "bfloat16"), layer.compute_dtype) for a in (x, w))  # the same values for all
            found[name] = [np.asarray(tf.cast(a, "float64")) for a in (*compute(x, w), layer.moving_variance)]
    tolerance = 2e-2 if dtype == "mixed_bfloat16" else 1e-5
    for ours, expected in zip(found[dtype], found["float64"], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    spread = found[dtype][-1]
    assert (spread == 1).all() if how == "frozen" else (spread > 1).all()


def test_the_kernels_are_used_where_they_can_be(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(BatchNormalization, "_by_passes", fail)
    monkeypatch.setattr(keras.layers.BatchNormalization, "call", fail)
    for training in (False, True):
        for dtype in ("float32", "mixed_bfloat16"):
            BatchNormalization(dtype=dtype)(np.ones((2, 3, 3, 4), np.float32), training=training)
        for dtype in ("float64", "mixed_float16"):
            with pytest.raises(AssertionError):
                BatchNormalization(dtype=dtype)(np.ones((2, 3, 3, 4)), training=training)


def test_the_saved_layer_comes_back():
    layer = BatchNormalization(momentum=0.8, epsilon=2e-4, name="bn")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is BatchNormalization
    assert (again.momentum, again.epsilon) == (0.8, 2e-4)


PROGRAM = """
import numpy as np, tensorflow as tf
devices = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer.model.layers import BatchNormalization

rng = np.random.default_rng(0)
x = rng.normal(2, 3, (4, 3, 3, 2)).astype("float32")
w = rng.normal(size=x.shape).astype("float32")

def gradients(layer, x, w):
    variables = [layer.gamma.value, layer.beta.value]
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True) * w)
    return tape.gradient(loss, [x, *variables])

single = BatchNormalization(); single.build(x.shape)
expected, *of_variables = gradients(single, tf.constant(x), w)

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = BatchNormalization(); layer.build(x.shape)
    layer.mean_over_replicas = lambda s: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, s)
halves = lambda a: strategy.experimental_distribute_values_from_function(
    lambda c: tf.constant(np.split(a, 2)[c.replica_id_in_sync_group]))

@tf.function
def step(x, w):
    return strategy.run(lambda x, w: gradients(layer, x, w), (x, w))

of_x, *sums = (strategy.experimental_local_results(part) for part in step(halves(x), halves(w)))
np.testing.assert_allclose(np.concatenate([v.numpy() for v in of_x]), expected, rtol=1e-4, atol=1e-5)
for ours, whole in zip(sums, of_variables):
    np.testing.assert_allclose(sum(v.numpy() for v in ours), whole, rtol=1e-4, atol=1e-5)
for name in ("moving_mean", "moving_variance"):
    np.testing.assert_allclose(np.asarray(getattr(layer, name)), np.asarray(getattr(single, name)), rtol=1e-5)
"""


def test_two_replicas_equal_one_with_both_batches():
    """The gradient crosses replicas too; in a process of its own, which sets up two logical devices."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
