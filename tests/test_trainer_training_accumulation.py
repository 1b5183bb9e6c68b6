"""A step of several parts against the step of the whole batch, and against the same written out by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config import LossConfig, UNetConfig
from trainer.model.layers import BatchNormalization
from trainer.model.unet import build_unet
from trainer.training.carried import LossScale, WeightAverage
from trainer.training.step import Health, make_train_step

UNET = UNetConfig(image_size=16, filters=(4, 6), kernels=(5, 3))
LOSS = LossConfig(perceptual=0, style_output=0, style_composite=0)
PARTS, SIZE = 4, 4


def draw(examples=PARTS * SIZE, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.random((examples, 16, 16, 3)).astype("float32")
    mask = rng.random((examples, 16, 16, 1)) > rng.random((examples, 1, 1, 1))  # holes of all sizes
    return tf.constant(target), tf.constant(mask.astype("float32"))


def freeze_normalization(model):
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.trainable = False


class Trained:
    """A network after some steps."""

    def __init__(self, accumulate, batches, freeze=False, loss_scale=None, dtype="float32", **options):
        self.model = build_unet(UNET, dtype=dtype)
        if freeze:
            freeze_normalization(self.model)
        self.optimizer = keras.optimizers.SGD(0.1)
        self.average = WeightAverage(self.model, 0.5)
        step = make_train_step(
            tf.distribute.get_strategy(),
            self.model,
            self.optimizer,
            None,
            LOSS,
            average=self.average,
            loss_scale=loss_scale,
            accumulate=accumulate,
            **options,
        )
        self.results = [step(*batch) for batch in batches]

    @property
    def health(self):
        return [Health(*result.health.numpy().tolist()) for result in self.results]


def assert_same(found, expected, tolerance=1e-5):
    for one, other in zip(found.results, expected.results, strict=True):
        assert one.terms.keys() == other.terms.keys() and len(one.terms) == 4
        for name, value in other.terms.items():
            assert float(one.terms[name]) == pytest.approx(float(value), rel=tolerance), name
        assert float(one.gradient_norm) == pytest.approx(float(other.gradient_norm), rel=tolerance)
    for x, y in zip(found.model.variables, expected.model.variables, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), tolerance, tolerance, err_msg=x.path)
    averages = expected.average.arrays()
    for name, array in found.average.arrays().items():
        np.testing.assert_allclose(array, averages[name], tolerance, tolerance, err_msg=name)


def test_four_parts_of_four_are_a_batch_of_sixteen():
    clip_norm = 0.05
    batches = [draw(seed=seed) for seed in range(3)]
    whole = Trained(1, batches, freeze=True, clip_norm=clip_norm)
    parts = Trained(PARTS, batches, freeze=True, clip_norm=clip_norm)
    assert_same(parts, whole)
    assert int(parts.optimizer.iterations) == 3
    norms = [float(result.gradient_norm) for result in whole.results]
    assert min(norms) > 2 * clip_norm  # it was clipped


def test_parts_of_the_same_statistics_are_the_whole_batch_with_normalization_too():
    batches = [[tf.tile(x, [PARTS, 1, 1, 1]) for x in draw(SIZE, seed)] for seed in range(3)]
    assert_same(Trained(PARTS, batches), Trained(1, batches))


def test_normalization_takes_each_part_by_itself():
    """By hand: the gradient is the mean of the parts', and so are the statistics, each from those before the step."""
    target, mask = draw()
    found = Trained(PARTS, [(target, mask)])
    expected, before = [], build_unet(UNET)
    for part in range(PARTS):
        rows = slice(part * SIZE, (part + 1) * SIZE)
        expected.append(Trained(1, [(target[rows], mask[rows])]).model.variables)  # plain descent adds up
    for found_, before_, *parts in zip(found.model.variables, before.variables, *expected, strict=True):
        mean = np.mean([x.numpy() for x in parts], axis=0)
        np.testing.assert_allclose(found_.numpy(), mean, 1e-5, 1e-6, err_msg=found_.path)
        assert not np.array_equal(found_.numpy(), before_.numpy())
    whole = Trained(1, [(target, mask)])
    differ = [
        x.path
        for x, y in zip(found.model.variables, whole.model.variables, strict=True)
        if not np.allclose(x.numpy(), y.numpy(), 1e-5, 1e-5)
    ]
    assert any(path.endswith("moving_variance") for path in differ)  # which is why it is documented


def test_a_part_that_is_not_finite_undoes_all_of_them():
    target, mask = draw(seed=1)
    spoiled = tf.tensor_scatter_nd_update(target, [[6, 2, 3, 0]], [np.inf])  # in the second part
    found, expected = Trained(PARTS, [draw(), (spoiled, mask)]), Trained(PARTS, [draw()])
    assert found.health == [(True, True, True), (False, False, False)]
    assert not np.isfinite(float(found.results[1].terms["total"]))
    for x, y in zip(found.model.variables, expected.model.variables, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=x.path)
    assert int(found.optimizer.iterations) == 1


def test_float16_scales_the_loss_of_each_part_and_halves_once_a_step():
    scale = LossScale(2.0**24)
    found = Trained(PARTS, [draw(seed=seed) for seed in range(16)], loss_scale=scale, dtype="mixed_float16")
    updated = [health.updated for health in found.health]
    assert all(health.sound and health.sound_here for health in found.health)
    assert not updated[0] and updated[-1] and scale.state()[0] == 2.0 ** (24 - updated.count(False))
    moved = {}
    for dtype, loss_scale in (("float32", None), ("mixed_float16", LossScale(2.0**10))):
        model = Trained(PARTS, [draw()], loss_scale=loss_scale, dtype=dtype).model
        start = build_unet(UNET, dtype=dtype).trainable_variables
        moved[dtype] = np.concatenate(
            [(x.numpy() - y.numpy()).ravel() for x, y in zip(model.trainable_variables, start, strict=True)]
        )
    assert np.linalg.norm(moved["float32"] - moved["mixed_float16"]) < 0.05 * np.linalg.norm(moved["float32"])
