"""One optimizer step against the same step written out by hand, and the learning rates against a table."""

from __future__ import annotations

import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import LossConfig, PhaseConfig, TrainConfig, UNetConfig
from trainer.model.unet import build_unet, freeze_encoder_bn
from trainer.training.carried import LossScale, WeightAverage
from trainer.training.step import Health, learning_rate_at, make_train_step

UNET = UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3))
L1 = LossConfig(perceptual=0, style_output=0, style_composite=0, total_variation=0)


def rates(initial, finetune=None):
    config = TrainConfig(initial=initial, finetune=finetune or PhaseConfig())
    return [learning_rate_at(config, step) for step in range(config.total_steps)]


def test_constant_rate():
    assert rates(PhaseConfig(steps=3, learning_rate=0.5)) == [0.5, 0.5, 0.5]


def test_warm_up_rises_to_the_rate():
    expected = [0.25, 0.5, 0.75, 1, 1, 1]
    np.testing.assert_allclose(rates(PhaseConfig(steps=6, learning_rate=1, warmup_steps=4)), expected)


def test_cosine_falls_after_the_warm_up():
    phase = PhaseConfig(steps=6, learning_rate=2, warmup_steps=2, schedule="cosine")
    half = math.sqrt(0.5)  # cos 45 degrees
    np.testing.assert_allclose(rates(phase), [1, 2, 2, 1 + half, 1, 1 - half])


def test_cosine_of_a_long_phase_ends_near_zero():
    found = rates(PhaseConfig(steps=1000, learning_rate=1, schedule="cosine"))
    assert found[0] == 1 and found[500] == pytest.approx(0.5) and 0 < found[-1] < 1e-5
    assert all(a > b for a, b in zip(found, found[1:], strict=False))


def test_the_second_phase_starts_anew():
    initial = PhaseConfig(steps=2, learning_rate=1, schedule="cosine")
    finetune = PhaseConfig(steps=4, learning_rate=0.1, warmup_steps=2)
    np.testing.assert_allclose(rates(initial, finetune), [1, 0.5, 0.05, 0.1, 0.1, 0.1])


def test_more_warm_up_than_steps():
    phase = PhaseConfig(steps=2, learning_rate=1, warmup_steps=4, schedule="cosine")
    np.testing.assert_allclose(rates(phase), [0.25, 0.5])


def draw(batch=4, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.random((batch, 16, 16, 3)).astype("float32")
    return tf.constant(target), tf.constant((rng.random((batch, 16, 16, 1)) > 0.3).astype("float32"))


def step_by_hand(model, optimizer, target, mask):
    """Loss of the paper's first two terms, its gradient, one update; returns total, valid, hole."""
    with tf.GradientTape() as tape:
        output = model([tf.where(mask == 1, target, 0.5), mask], training=True)
        distance = tf.abs(output - target)
        valid = tf.reduce_sum(distance * mask) / tf.size(distance, tf.float32)
        hole = tf.reduce_sum(distance * (1 - mask)) / tf.size(distance, tf.float32)
        total = valid + 6 * hole
    gradients = tape.gradient(total, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return {"total": float(total), "valid": float(valid), "hole": float(hole)}


def assert_models_agree(model, expected, rtol=1e-4, atol=1e-6):
    for x, y in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol, atol, err_msg=x.path)


def test_a_step_is_the_one_written_by_hand():
    model, expected = build_unet(UNET), build_unet(UNET)
    optimizers = [keras.optimizers.SGD(0.1) for _ in range(2)]
    start = [x.numpy() for x in model.variables]
    step = make_train_step(tf.distribute.get_strategy(), model, optimizers[0], None, L1)
    for seed in range(2):
        terms = step(*draw(seed=seed)).terms
        by_hand = step_by_hand(expected, optimizers[1], *draw(seed=seed))
        assert terms.keys() == by_hand.keys()
        for name, value in by_hand.items():
            assert float(terms[name]) == pytest.approx(value, rel=1e-5), name
        assert_models_agree(model, expected)
    # Every variable moved, BatchNorm's statistics too.
    assert not any(np.array_equal(x, y.numpy()) for x, y in zip(start, model.variables, strict=True))


def test_the_learning_rate_can_change_between_steps():
    model, expected = build_unet(UNET), build_unet(UNET)
    optimizer = keras.optimizers.SGD(0.1)
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, L1)
    for rate in (0.1, 0.02):
        optimizer.learning_rate.assign(rate)
        step(*draw())
        step_by_hand(expected, keras.optimizers.SGD(rate), *draw())
    assert_models_agree(model, expected)


def test_frozen_encoder_statistics_stay_in_the_next_step_made():
    model, optimizer = build_unet(UNET), keras.optimizers.SGD(0.1)
    strategy = tf.distribute.get_strategy()
    make_train_step(strategy, model, optimizer, None, L1)(*draw())
    frozen = freeze_encoder_bn(model, True)
    assert frozen == ["encoder_2_bn"]
    before = {x.path: x.numpy() for x in model.variables}
    make_train_step(strategy, model, optimizer, None, L1)(*draw(seed=1))
    stayed = {x.path for x in model.variables if np.array_equal(before[x.path], x.numpy())}
    assert stayed == {f"encoder_2_bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}


def norm_of(arrays):
    return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in arrays))


def moves(clip_norm, rate=0.1):
    """What one step of plain gradient descent changed each trainable variable by, over the rate; and its result."""
    model = build_unet(UNET)
    before = [x.numpy() for x in model.trainable_variables]
    optimizer = keras.optimizers.SGD(rate)
    result = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, L1, clip_norm=clip_norm)(*draw())
    return [(x - y.numpy()) / rate for x, y in zip(before, model.trainable_variables, strict=True)], result


def test_the_gradient_is_clipped_to_its_norm():
    gradients, result = moves(0)
    norm = norm_of(gradients)
    assert float(result.gradient_norm) == pytest.approx(norm, rel=1e-4)
    clipped, result = moves(norm / 4)
    assert norm_of(clipped) == pytest.approx(norm / 4, rel=1e-4)
    assert float(result.gradient_norm) == pytest.approx(norm, rel=1e-4)  # as it was
    for x, y in zip(gradients, clipped, strict=True):
        np.testing.assert_allclose(y, x / 4, rtol=1e-3, atol=1e-5)
    unclipped, _ = moves(norm * 2)
    for x, y in zip(gradients, unclipped, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6)


def test_averages_follow_the_recursion():
    model, optimizer = build_unet(UNET), keras.optimizers.SGD(0.1)
    average = WeightAverage(model, 0.3)
    expected = {x.path: x.numpy() for x in model.variables}
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, L1, average=average)
    for t, decay in ((1, 2 / 11), (2, 3 / 12), (3, 0.3), (4, 0.3)):  # (1 + t) / (10 + t) until that is 0.3
        step(*draw(seed=t))
        expected = {x.path: decay * expected[x.path] + (1 - decay) * x.numpy() for x in model.variables}
    found = average.arrays()
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("planted", ["target", "weights"])
def test_a_step_that_is_not_finite_changes_nothing(planted):
    model, optimizer = build_unet(UNET), keras.optimizers.Adam(0.01)
    average = WeightAverage(model, 0.5)
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, L1, average=average)
    assert Health(*step(*draw()).health.numpy()) == (True, True, True)
    target, mask = draw(seed=1)
    if planted == "target":
        target = tf.tensor_scatter_nd_update(target, [[1, 2, 3, 0]], [np.inf])
    else:  # infinite on the way: the weights are, and so is the loss of an example that is fine
        model.variables[0].assign(np.full(model.variables[0].shape, 3e38, np.float32))
    everything = [*model.variables, *optimizer.variables]
    before = [x.numpy() for x in everything]
    averages = average.arrays()
    result = step(target, mask)
    assert Health(*result.health.numpy()) == (False, False, False)
    assert not np.isfinite(float(result.terms["total"]))
    for x, y in zip(before, everything, strict=True):
        np.testing.assert_array_equal(x, y.numpy(), err_msg=y.path)
    for name, x in average.arrays().items():
        np.testing.assert_array_equal(x, averages[name], err_msg=name)


def test_float16_scales_its_loss_and_survives_an_overflow():
    model, optimizer, scale = build_unet(UNET, dtype="mixed_float16"), keras.optimizers.Adam(0.01), LossScale(2.0**24)
    step = make_train_step(tf.distribute.get_strategy(), model, optimizer, None, L1, loss_scale=scale)
    before, updated, totals = [x.numpy() for x in model.variables], [], []
    for seed in range(16):
        result = step(*draw(seed=seed))
        health = Health(*result.health.numpy())
        assert health.sound and health.sound_here  # an overflow of gradients is no fault
        updated.append(bool(health.updated))
        totals.append(float(result.terms["total"]))
        same = all(np.array_equal(x, y.numpy()) for x, y in zip(before, model.variables, strict=True))
        assert same == (not any(updated))
        # Once per overflow the scale halves.
        assert scale.state()[0] == 2.0 ** (24 - updated.count(False))
    assert not updated[0] and updated[-1] and np.isfinite(totals).all()
    assert int(optimizer.iterations) == updated.count(True)


def test_float16_steps_are_those_of_float32():
    """The scale must not show in the gradient: steps of plain descent, whose size is that of the gradient."""
    moved = {}
    for dtype, scale in (("float32", None), ("mixed_float16", LossScale(2.0**10))):
        model = build_unet(UNET, dtype=dtype)
        before = [x.numpy() for x in model.trainable_variables]
        make_train_step(tf.distribute.get_strategy(), model, keras.optimizers.SGD(0.1), None, L1, loss_scale=scale)(
            *draw()
        )
        moved[dtype] = np.concatenate(
            [(x.numpy() - y).ravel() for x, y in zip(model.trainable_variables, before, strict=True)]
        )
    difference = np.linalg.norm(moved["float32"] - moved["mixed_float16"]) / np.linalg.norm(moved["float32"])
    assert difference < 0.05


def test_the_loss_scale_rises_after_steps_without_overflow():
    scale, seen = LossScale(4.0, growth_steps=3), []
    for finite in (True, True, True, True, False, True, True, True, False, False, False, False, False):
        scale.update(tf.constant(finite))
        seen.append(scale.state()[0])
    assert seen == [4, 4, 8, 8, 4, 4, 4, 8, 4, 2, 1, 1, 1]
    other = LossScale()
    scale.update(tf.constant(True))
    other.restore(scale.state())
    assert other.state() == [1, 1]


REPLICAS = """
import sys
import numpy as np, tensorflow as tf, keras
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer.config import LossConfig, UNetConfig
from trainer.training.step import make_train_step
from trainer.model.unet import build_unet
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
loss = LossConfig(perceptual=0, style_output=0, style_composite=0, total_variation=0)
with strategy.scope():
    model = build_unet(UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3)))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
step = make_train_step(strategy, model, optimizer, None, loss)
arrays = np.load(sys.argv[1])
halves = [strategy.experimental_distribute_values_from_function(
    lambda c, x=arrays[name]: tf.constant(np.split(x, 2)[c.replica_id_in_sync_group])) for name in ("target", "mask")]
terms = {k: float(v) for k, v in step(*halves).terms.items()}
np.savez(sys.argv[2], **terms, **{str(i): v.numpy() for i, v in enumerate(model.variables)})
"""


def test_two_replicas_of_half_a_batch_are_one_of_the_whole(tmp_path):
    target, mask = draw(8)
    np.savez(tmp_path / "in.npz", target=target, mask=mask)
    command = [sys.executable, "-c", REPLICAS, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    expected = build_unet(UNET)
    by_hand = step_by_hand(expected, keras.optimizers.SGD(0.1), target, mask)
    for name, value in by_hand.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name
    for i, variable in enumerate(expected.variables):
        np.testing.assert_allclose(found[str(i)], variable.numpy(), 1e-3, 1e-5, err_msg=variable.path)
