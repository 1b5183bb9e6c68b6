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
from trainer.step import learning_rate_at, make_train_step
from trainer.unet import build_unet, freeze_encoder_bn

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
        terms = step(*draw(seed=seed))
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


REPLICAS = """
import sys
import numpy as np, tensorflow as tf, keras
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from trainer.config import LossConfig, UNetConfig
from trainer.step import make_train_step
from trainer.unet import build_unet
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
terms = {k: float(strategy.reduce("MEAN", v, axis=None)) for k, v in step(*halves).items()}
np.savez(sys.argv[2], **terms, **{str(i): v.numpy() for i, v in enumerate(model.variables)})
"""


def test_two_replicas_of_half_a_batch_are_one_of_the_whole(tmp_path):
    target, mask = draw(8)
    np.savez(tmp_path / "in.npz", target=target, mask=mask)
    command = [sys.executable, "-c", REPLICAS, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    expected = build_unet(UNET)
    by_hand = step_by_hand(expected, keras.optimizers.SGD(0.1), target, mask)
    for name, value in by_hand.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name
    for i, variable in enumerate(expected.variables):
        np.testing.assert_allclose(found[str(i)], variable.numpy(), 1e-3, 1e-5, err_msg=variable.path)
