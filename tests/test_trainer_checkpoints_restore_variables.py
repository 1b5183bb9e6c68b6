"""Variables of Keras models and optimizers, out of a checkpoint and into one, and what is said when they do not fit."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from trainer import checkpoints, presets
from trainer.errors import UserError


def make_model(seed, units=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(units, name="dense")], name="net")


def test_variables_pass_from_one_model_to_another():
    source, target = make_model(1), make_model(2)
    arrays = checkpoints.read_variables(source.variables)
    assert arrays.keys() == {"net/dense/kernel", "net/dense/bias"}
    checkpoints.assign_variables(target.variables, arrays)
    np.testing.assert_array_equal(target.layers[0].kernel, source.layers[0].kernel)
    source.layers[0].kernel.assign(source.layers[0].kernel * 2)
    np.testing.assert_array_equal(arrays["net/dense/kernel"], target.layers[0].kernel)  # a copy, not a view


def test_differences_are_named_and_nothing_is_assigned():
    model = make_model(1)
    before = [x.numpy() for x in model.variables]
    good = checkpoints.read_variables(make_model(2).variables)
    kernel, bias = "net/dense/kernel", "net/dense/bias"
    wider = checkpoints.read_variables(make_model(2, units=4).variables)
    for arrays, message in [
        ({**good, "other/kernel": np.zeros(1)}, "other/kernel is in the checkpoint only"),
        ({kernel: good[kernel]}, f"{bias} is in the config's network but not in the checkpoint"),
        ({**wider, bias: good[bias]}, rf"{kernel}: expected shape \(2, 3\). Received \(2, 4\)"),
        ({**good, bias: good[bias][:1]}, rf"{bias}: expected shape \(3,\). Received \(1,\)"),
    ]:
        with pytest.raises(UserError, match=f"does not fit the config: {message}"):
            checkpoints.assign_variables(model.variables, arrays)
        for x, y in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(x, y)


def make_saved(run, model, config, **more):
    variables = {"model": checkpoints.read_variables(model.variables), "optimizer": {}, **more}
    return checkpoints.load_checkpoint(checkpoints.save_checkpoint(run, variables, {"step": 1}, 9, config=config))


def test_restoring_names_the_config_keys_that_differ(tmp_path):
    old = presets.override(presets.PRESETS["demo"], ["unet.residual=false"])
    changes = ["unet.filters=4,8,8,8,8", "unet.head=sigmoid", "precision=float32", "data.flip=false", "seed=4"]
    new = presets.override(old, changes)
    checkpoint = make_saved(str(tmp_path), make_model(1, units=4), old)
    model = make_model(2)
    before = [x.numpy() for x in model.variables]
    expected = (
        f"{checkpoint.pin.address} does not fit the config: "
        "unet.filters is (32, 64, 128, 128, 128) in the checkpoint and (4, 8, 8, 8, 8) in the config; "
        "unet.head is none in the checkpoint and sigmoid in the config; "
        "net/dense/kernel: expected shape (2, 3). Received (2, 4)."
    )
    with pytest.raises(UserError) as caught:
        checkpoints.restore_variables(checkpoint, new, {"model": model.variables})
    assert str(caught.value) == expected
    # Without a difference in the network's keys, the others that variables depend on.
    new = presets.override(old, ["precision=float32", "data.flip=false", "initial.steps=7"])
    with pytest.raises(UserError, match="config: precision is mixed_bfloat16 in the checkpoint and float32 in the con"):
        checkpoints.restore_variables(checkpoint, new, {"model": model.variables})
    # Written by a program that stores no config.
    with pytest.raises(UserError, match="does not fit the config: net/dense/kernel: expected"):
        checkpoints.restore_variables(dataclasses.replace(checkpoint, config=None), new, {"model": model.variables})
    for x, y in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_restoring_sets_all_parts_or_none(tmp_path):
    config, source, model, ema = presets.PRESETS["demo"], make_model(1), make_model(2), make_model(3)
    before = [x.numpy() for x in model.variables]
    checkpoint = make_saved(str(tmp_path), source, config)
    parts = {"model": model.variables, "ema": ema.variables}
    with pytest.raises(UserError, match="does not fit the config: it has no ema"):
        checkpoints.restore_variables(checkpoint, config, parts)
    for x, y in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(x, y)
    arrays = {name: array + 1 for name, array in checkpoint.variables["model"].items()}
    checkpoints.restore_variables(make_saved(str(tmp_path), source, config, ema=arrays), config, parts)
    for x, y, z in zip(source.variables, model.variables, ema.variables, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(x + 1, z)


def test_two_variables_of_one_path_are_refused():
    twice = [*make_model(1).variables, *make_model(2).variables]
    with pytest.raises(ValueError, match="net/dense/.* twice"):
        checkpoints.read_variables(twice)


def test_optimizer_state_passes_too():
    model = make_model(1)
    trained, fresh = (keras.optimizers.Adam(rate, name="adam") for rate in (0.1, 0.5))
    gradients = [np.full(x.shape, 0.5, "float32") for x in model.trainable_variables]
    trained.apply(gradients, model.trainable_variables)
    fresh.build(model.trainable_variables)
    checkpoints.assign_variables(fresh.variables, checkpoints.read_variables(trained.variables))
    after = [x.numpy() for x in model.variables]
    trained.apply(gradients, model.trainable_variables)
    expected = [x.numpy() for x in model.variables]
    for variable, array in zip(model.variables, after, strict=True):
        variable.assign(array)
    fresh.apply(gradients, model.trainable_variables)
    for variable, array in zip(model.variables, expected, strict=True):
        np.testing.assert_array_equal(variable, array)
    assert int(fresh.iterations) == 2
