"""A run and its datasets as an earlier commit wrote them: later commits must read them.

landed_383277e.zip was made by the code of that commit: three steps of training with ``ema_decay=0.9`` on four images
and six masks, and in expected.npz what that code computes: outputs of the network with each of the two sets of weights
of the last checkpoint, and the first training batch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from trainer import checkpoints, presets
from trainer.data.batches import training_batches
from trainer.data.manifest import load_manifest
from trainer.inference import predict
from trainer.model.unet import build_unet


@pytest.fixture(scope="module")
def landed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landed")
    with zipfile.ZipFile(Path(__file__).with_name("landed_383277e.zip")) as archive:
        archive.extractall(folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(landed):
    with np.load(f"{landed}/expected.npz") as arrays:
        found = dict(arrays)
    assert np.abs(found["ema"] - found["model"])[found["mask"][..., 0] == 0].mean() > 0.01  # to be told apart
    return found


def test_the_config_is_read(landed):
    config = presets.from_json(Path(f"{landed}/run/config.json").read_bytes())
    assert config.unet.filters == (3, 4) and config.unet.kernels == (5, 3) and config.ema_decay == 0.9
    assert predict.find_model(f"{landed}/run").config == config


def test_training_can_go_on_from_its_checkpoint(landed, expected):
    found = checkpoints.load_newest(f"{landed}/run")
    assert found.skipped == [] and found.checkpoint.state == {"step": 3, "phase": "initial", "examples": 6}
    assert found.checkpoint.variables.keys() == {"model", "optimizer", "ema"}
    config = found.checkpoint.config
    network = build_unet(config.unet, dtype=config.precision)
    optimizer = keras.optimizers.Adam(name="adam")
    optimizer.build(network.trainable_variables)
    parts = {"model": network.variables, "optimizer": optimizer.variables}
    checkpoints.restore_variables(found.checkpoint, config, parts)
    assert int(optimizer.iterations) == 3
    output = network([expected["image"], expected["mask"]], training=False)
    np.testing.assert_allclose(output, expected["model"], atol=1e-5)


@pytest.mark.parametrize(("which", "step"), [("latest", 3), ("best", 3), (2, 2)])
def test_its_checkpoints_are_found(landed, which, step):
    pin = checkpoints.find(f"{landed}/run", which)
    assert f"/step-{step:08d}-" in pin.address and checkpoints.load_checkpoint(pin).state["step"] == step


def test_its_weights_and_its_export_compute_the_same(landed, expected):
    run = f"{landed}/run"
    for pin in (predict.find_model(run), predict.find_export(f"{run}/exports/step-00000003")):
        output = predict.load_model(pin).predict(expected["image"], expected["mask"])
        np.testing.assert_allclose(output, expected["ema"], atol=1e-5)


def test_its_datasets_give_the_same_batch(landed, expected):
    assert load_manifest(f"{landed}/images", "image").counts == {"inputs": 4, "records": 4, "rejects": 0}
    config = presets.from_json(Path(f"{landed}/run/config.json").read_bytes())
    both = f"{landed}/images", f"{landed}/masks", config.data
    target, mask = next(iter(training_batches(*both, image_size=16, batch_size=2, seed=config.seed)))
    np.testing.assert_array_equal(mask, expected["batch_mask"])
    np.testing.assert_allclose(target, expected["target"], atol=2 / 255)  # JPEG decoders may round differently
